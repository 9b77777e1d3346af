/** A CommonJS handler file by its extension; it overrides a built-in command. */
'use strict';

module.exports = { named: ({ name }) => `hello ${name}`, echo: (args) => ({ mine: args }), ping: () => 'never called' };

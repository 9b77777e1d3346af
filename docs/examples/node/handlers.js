'use strict';
const { marked } = require('marked'); // npm install marked

exports.render = ({ markdown }) => marked.parse(markdown);
exports.render.doc = 'Return the HTML of a Markdown text.';

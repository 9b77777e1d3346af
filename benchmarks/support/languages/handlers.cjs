// Return the value.
exports.mirror = ({ value }) => value;

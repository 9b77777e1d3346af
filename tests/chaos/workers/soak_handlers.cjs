// The commands of a soak in Node.
"use strict";

exports.give = ({ value = null }) => value;

exports.count = (_, { state }) => {
  state.n = (state.n || 0) + 1;
  return state.n;
};

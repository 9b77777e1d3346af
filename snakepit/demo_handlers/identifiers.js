/** The JavaScript half of `snakepit demo`: counts lines and identifiers in batches of source files. */
'use strict';

const fs = require('fs');
const path = require('path');

const NEWLINE = 10;

exports.onStart = (root, ctx) => {
  ctx.workerState.root = root;
};

/** Returns {lines: [number of each file], identifiers: {name: how often in the whole batch}}. */
exports.identifiers = ({ paths }, ctx) => {
  const counts = new Map();
  const lines = paths.map((name) => {
    const source = fs.readFileSync(path.join(ctx.workerState.root, name));
    // One byte a character: the sources are in many encodings, and ASCII is the same in all of them.
    for (const [word] of source.toString('latin1').matchAll(/[A-Za-z_][A-Za-z_0-9]*/g)) {
      counts.set(word, (counts.get(word) || 0) + 1);
    }
    return countLines(source);
  });
  return { lines, identifiers: Object.fromEntries(counts) };
};

function countLines(source) {
  let lines = 0;
  for (let at = source.indexOf(NEWLINE); at !== -1; at = source.indexOf(NEWLINE, at + 1)) lines += 1;
  return source.length > 0 && source[source.length - 1] !== NEWLINE ? lines + 1 : lines;
}

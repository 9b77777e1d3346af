// The commands of the workers; runs in Node, with whatever npm has installed beside this file.
'use strict';

// Prepare what all calls need, once in each worker, before it serves: a template, a connection, a table.
exports.onStart = async ({ stop_words: stopWords }, ctx) => {
  ctx.workerState.stopWords = new Set(stopWords);
};

exports.frequent = async ({ text, count = 3 }, ctx) => {
  const counts = new Map();
  for (const word of text.toLowerCase().split(/\s+/).filter(Boolean)) {
    if (!ctx.workerState.stopWords.has(word)) counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  return [...counts].sort((one, other) => other[1] - one[1]).slice(0, count);
};
exports.frequent.doc = 'Return the most frequent words of a text, as [word, how often].';

exports.remember = async ({ name }, ctx) => {
  ctx.state.name = name;
  return 'noted';
};
exports.remember.doc = 'Keep a name for this session.';

exports.greet = async (args, ctx) => `Hello, ${ctx.state.name ?? 'stranger'}!`;
exports.greet.doc = 'Greet whom this session knows.';

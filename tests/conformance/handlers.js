/** The commands that transcripts and misuse tests expect of a JavaScript bridge; handlers.py has the same. */
'use strict';

const fs = require('fs');
const { spawnSync } = require('child_process');

class Inner extends Error {}
class Failure extends Error {}

exports.onStart = async (startArgs, ctx) => {
  if (startArgs !== null && startArgs.fail) throw new Failure('cannot start');
  ctx.workerState.start_args = startArgs;
};

exports.started = (args, ctx) => ctx.worker_state.start_args;

exports.identity = ({ value }) => value;

exports.later = async ({ value }) => {
  await new Promise((resolve) => setImmediate(resolve));
  return value;
};

exports.fail = ({ message = 'boom' }) => {
  const error = new Failure(message);
  error.data = { field: 'name' };
  error.cause = new Inner('deep down');
  throw error;
};

exports.count = (args, ctx) => {
  ctx.state.count = (ctx.state.count || 0) + 1;
  return ctx.state.count;
};

exports.whoami = (args, ctx) => ({ session: ctx.session_id, worker: ctx.workerId });

exports.deadline = (args, ctx) => ctx.deadline_s;

exports.log_line = ({ message, level, fields }, ctx) => {
  ctx.log(message, level, fields);
  return 'logged';
};

exports.unencodable = ({ kind }) => {
  const cycle = {};
  cycle.self = cycle;
  let deep = [];
  for (let i = 0; i < 300; i++) deep = [deep];
  const values = {
    nan: NaN,
    infinity: Infinity,
    'lone surrogate': 'x\ud800',
    cycle,
    deep,
    object: new (class Thing {})(),
    function: () => 1,
    symbol: Symbol('s'),
    undefined: undefined,
    date: new Date(0),
    map: new Map(),
    'unsafe integer': 2 ** 53,
    'large BigInt': 2n ** 64n,
  };
  return { a: [values[kind]] };
};

exports.undefined_property = () => ({ a: undefined });
exports.symbol_key = () => ({ [Symbol('s')]: 1 });
exports.nothing = () => undefined;
exports.exact_numbers = () => [2n ** 53n - 1n, -1n, 1e21, 0.1, Number.MAX_VALUE];

exports.text = ({ size }) => 'x'.repeat(size);

exports.blob = ({ size }) => Buffer.from(Array.from({ length: size }, (_, i) => i % 256));

exports.nested_blobs = () => ({ 'a/b': [Buffer.from('one')], 't~': { empty: Buffer.alloc(0), two: new Uint8Array([0, 1]) }, n: null });

exports.reverse = ({ data }) => Buffer.from(data).reverse();

exports.sizes = ({ items }) => items.map((item) => item.length);

exports.print_text = ({ line }) => {
  console.log(line);
  return 'printed';
};

/** Write to descriptor 1 as native code would. */
exports.write_fd_1 = ({ line }) => {
  fs.writeSync(1, line);
  return 'written';
};

exports.child_reads_stdin = () => spawnSync('cat', { stdio: ['inherit', 'pipe', 'inherit'] }).stdout.toString();

exports.child_sees = () => {
  const script = 'ls -l /proc/self/fd | grep -c pipe: ; env | grep -c "^SNAKEPIT_.*FD"';
  return spawnSync('sh', ['-c', script], { stdio: ['ignore', 'pipe', 'inherit'] }).stdout.toString().split(/\s+/).filter(Boolean);
};

exports.hang = (args, ctx) => {
  ctx.log('hanging');
  return new Promise((resolve) => setInterval(() => resolve, 1000));
};

/** Computes for so many milliseconds; with null, waits for ever. */
exports.stall = ({ ms }) => {
  if (ms === null) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  const until = performance.now() + ms;
  while (performance.now() < until);
  return ms;
};

/** Waits for ever with null, and lets the event loop run meanwhile. */
exports.stall_later = ({ ms }) => new Promise((resolve) => ms !== null && resolve(ms));

exports.throw_later = () => {
  setImmediate(() => {
    throw new Failure('from a timer');
  });
  return new Promise((resolve) => setInterval(() => resolve, 1000));
};

let resolveEarlier;

exports.throw_then_resolve = () => {
  setImmediate(() => {
    throw new Failure('from a timer');
  });
  return new Promise((resolve) => {
    resolveEarlier = resolve;
  });
};

/** Resolves the promise of `throw_then_resolve`, whose request is answered already, while this one runs. */
exports.resolve_earlier = async () => {
  resolveEarlier('too late');
  await new Promise((resolve) => setImmediate(resolve));
  return 'in time';
};

exports.write_stream = ({ line }) => process.stdout.write(line);

exports.reject_aside = async () => {
  Promise.reject(new Failure('nobody waits'));
  await new Promise((resolve) => setTimeout(resolve, 1));
  return 'still here';
};

exports.throw_text = () => {
  throw 'just text';
};

exports.pid = () => process.pid;

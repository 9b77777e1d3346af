#!/usr/bin/env node
/**
 * Snakepit's Node bridge: answers one host's framed requests, in order, with the functions of a handler file.
 *
 *     node snakepit_bridge.js [--handlers FILE]
 *
 * Runs on the main thread of Node >= 16 with the standard library only, and owns the two frame descriptors,
 * the request queue and the session states.  The normative text is PROTOCOL.md, one folder up.
 */
'use strict';

const fs = require('fs');
const net = require('net');
const path = require('path');
const { AsyncLocalStorage } = require('async_hooks');
const { createRequire } = require('module');
const { pathToFileURL } = require('url');

const BRIDGE_VERSION = '1.0';
const DEFAULT_MAX_FRAME = 64 * 1024 * 1024; // ASCII text read as a length is far above it: PROTOCOL.md, "Frames"
const LARGEST_MAX_FRAME = 128 * 1024 * 1024 - 1; // from 128 MiB on, a leaked text that a tab leads would be a length
const MAX_DEPTH = 256; // levels of nesting in a result; the host's limit for args is the same
const MAX_MESSAGE_DEPTH = 512; // arbitrary: args at the host's limit and the message around them, with room
const TEXT_CAP_BYTES = 64 * 1024;
const TYPE_CAP = 200; // arbitrary: characters of a class's name
const BATCH_WAIT_MS = 1; // PROTOCOL.md, "batch"
// A Linux pipe holds 64 KiB, so a larger buffer would never be filled by one read.
const CHUNK_BYTES = 64 * 1024;

const startedAt = Date.now();
const state = {
  level: 0,
  agreed: new Set(), // capabilities both sides named in the handshake
  maxFrame: DEFAULT_MAX_FRAME,
  workerId: 'unknown',
  workerState: {},
  sessions: new Map(), // session id -> the `state` of its handlers
  commands: new Map(), // name -> function (args, ctx)
  requests: 0,
};
let frameOut = 1;
let claimFd = -1;

// ---------------------------------------------------------------------------------------------- descriptors

/**
 * Open a descriptor again under a new number, which no child of this process inherits.
 *
 * Node has no dup() and cannot set close-on-exec; opening /dev/fd/N does both for pipes and files.  A socket or
 * a foreign owner refuses: then the old number is used as it is.
 */
function reopen(fd, flags) {
  try {
    return fs.openSync(`/dev/fd/${fd}`, flags);
  } catch {
    return fd;
  }
}

/** Take the frame descriptors before any user code runs.  Returns the one to read requests from. */
function takeDescriptors() {
  const named = process.env.SNAKEPIT_FDS;
  const claim = process.env.SNAKEPIT_CLAIM_FD;
  delete process.env.SNAKEPIT_FDS;
  delete process.env.SNAKEPIT_CLAIM_FD;
  if (claim !== undefined && /^\d+$/.test(claim)) {
    claimFd = reopen(Number(claim), fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
    if (claimFd !== Number(claim)) fs.closeSync(Number(claim));
  }
  if (named === undefined) return protectStandardStreams();
  const numbers = /^(\d+),(\d+)$/.exec(named);
  if (numbers === null) usage(`SNAKEPIT_FDS must be two numbers, got ${JSON.stringify(named)}`);
  const [input, output] = [Number(numbers[1]), Number(numbers[2])];
  for (const fd of [input, output]) {
    try {
      fs.fstatSync(fd);
    } catch (error) {
      usage(`SNAKEPIT_FDS names ${fd}: ${error.message}`);
    }
  }
  const frameIn = reopen(input, fs.constants.O_RDONLY);
  frameOut = reopen(output, fs.constants.O_WRONLY);
  if (frameIn !== input) fs.closeSync(input);
  if (frameOut !== output) fs.closeSync(output);
  return frameIn;
}

/** Without SNAKEPIT_FDS the frames are on 0 and 1: move them away, put null and stderr in their places. */
function protectStandardStreams() {
  const frameIn = reopen(0, fs.constants.O_RDONLY);
  if (frameIn !== 0) {
    fs.closeSync(0);
    fs.openSync('/dev/null', 'r'); // POSIX: the lowest free number, so 0
  } else {
    // A socket cannot be moved: at least what JavaScript reads and prints stays off the stream.
    Object.defineProperty(process, 'stdin', { configurable: true, get: () => fs.createReadStream('/dev/null') });
  }
  frameOut = reopen(1, fs.constants.O_WRONLY);
  if (frameOut !== 1) {
    fs.closeSync(1);
    try {
      fs.openSync('/dev/fd/2', fs.constants.O_WRONLY | fs.constants.O_APPEND);
    } catch {
      fs.openSync('/dev/null', 'w');
    }
  } else {
    Object.defineProperty(process, 'stdout', { configurable: true, get: () => process.stderr });
  }
  return frameIn;
}

const sleeper = new Int32Array(new SharedArrayBuffer(4));

/** Write all of `buffer`; a full non-blocking pipe is waited for, a closed one means the host is gone. */
function writeAll(fd, buffer, length) {
  let done = 0;
  while (done < length) {
    try {
      done += fs.writeSync(fd, buffer, done, length - done);
    } catch (error) {
      if (error.code === 'EAGAIN') Atomics.wait(sleeper, 0, 0, 1);
      else if (error.code !== 'EINTR') {
        if (fd === frameOut) process.exit(0);
        return; // stderr is closed: nobody is left to tell
      }
    }
  }
}

/** One line on stderr, in one write. */
function complain(text) {
  const line = Buffer.from(`snakepit_bridge: ${text}\n`);
  writeAll(2, line, line.length);
}

function usage(text) {
  complain(text);
  process.exit(2);
}

// ---------------------------------------------------------------------------------------------- strict JSON

class EncodeError extends Error {}
class Refused extends Error {} // the quick walk met something that needs the walk with paths
/** A request that is answered with its code and without a traceback: the message says it all. */
class Refusal extends Error {
  constructor(code, type, message) {
    super(message);
    this.code = code;
    this.type = type;
  }
}
const badArgs = (message) => new Refusal('bad_args', 'InvalidArguments', message);

const isPlain = (proto) =>
  proto === Object.prototype || proto === null || Object.prototype.hasOwnProperty.call(proto, 'isPrototypeOf');

/** Admit what JSON carries exactly; throws Refused for the rest (bytes and BigInt included). */
function check(value, depth) {
  switch (typeof value) {
    case 'string':
    case 'boolean':
      return;
    case 'number':
      // From 1e21 on JSON.stringify writes the exponent form, a float on every side; below, an integer literal.
      if (Number.isSafeInteger(value) || (Number.isFinite(value) && (value % 1 !== 0 || Math.abs(value) >= 1e21))) return;
      throw new Refused();
    case 'object': {
      if (value === null) return;
      if (depth <= 0) throw new Refused();
      if (Array.isArray(value)) {
        for (let i = 0; i < value.length; i++) check(value[i], depth - 1);
        return;
      }
      if (!isPlain(Object.getPrototypeOf(value)) || Object.getOwnPropertySymbols(value).length > 0) throw new Refused();
      for (const key of Object.keys(value)) check(value[key], depth - 1);
      return;
    }
    default:
      throw new Refused();
  }
}

const pointerToken = (key) => key.replace(/~/g, '~0').replace(/\//g, '~1');
const LONE_SURROGATE = /[\ud800-\udfff]/u; // with the u flag a proper pair is one code point and does not match

function refuse(at, reason) {
  throw new EncodeError(`${at.length > 200 ? `${wellFormed(at.slice(0, 197))}...` : at}: ${reason}`);
}

function checkText(text, at) {
  const lone = text.search(LONE_SURROGATE);
  if (lone >= 0) refuse(at, `text with a lone surrogate at index ${lone} is not UTF-8`);
}

/** Throws EncodeError with the path of the first text in a decoded message that is not UTF-8. */
function checkTexts(value, at) {
  if (typeof value === 'string') checkText(value, at);
  else if (value !== null && typeof value === 'object') {
    for (const [key, item] of Object.entries(value)) {
      checkText(key, at);
      checkTexts(item, `${at}/${pointerToken(key)}`);
    }
  }
}

/**
 * Copy `value` with null for each bytes value, which goes to `attachments` as [pointer, bytes].
 *
 * Throws EncodeError with the path of the first value that JSON cannot carry.
 */
function extract(value, at, above, attachments) {
  switch (typeof value) {
    case 'string':
      checkText(value, at);
      return value;
    case 'boolean':
      return value;
    case 'number':
      if (!Number.isFinite(value)) refuse(at, `${value} is not JSON`);
      if (value % 1 === 0 && !Number.isSafeInteger(value) && Math.abs(value) < 1e21)
        refuse(at, `integer ${value} is beyond 2^53-1 and may be rounded; send it as text`);
      return value;
    case 'bigint':
      if (!Number.isSafeInteger(Number(value))) refuse(at, `integer ${value} is beyond 2^53-1; send it as text`);
      return Number(value);
    case 'object':
      break;
    default:
      return refuse(at, `${typeof value} is not JSON`);
  }
  if (value === null) return null;
  if (value instanceof Uint8Array) {
    if (attachments === null) refuse(at, `${typeName(value)} cannot travel: the host takes no attachments`);
    attachments.push([`/${at}`, value]);
    return null;
  }
  if (above.includes(value)) refuse(at, 'a cycle: the value contains itself');
  if (above.length >= MAX_DEPTH) refuse(at, `nested deeper than ${MAX_DEPTH} levels`);
  let copy;
  above.push(value);
  if (Array.isArray(value)) {
    copy = [];
    for (let i = 0; i < value.length; i++) copy.push(extract(value[i], `${at}/${i}`, above, attachments));
  } else {
    if (value instanceof Date) refuse(at, 'Date is not JSON; convert it, for example with toISOString()');
    if (!isPlain(Object.getPrototypeOf(value))) refuse(at, `${typeName(value)} is not JSON; convert it to a plain object`);
    if (Object.getOwnPropertySymbols(value).length > 0) refuse(at, 'a symbol as key is not JSON');
    copy = Object.create(null); // a plain object would take the key __proto__ as its prototype
    for (const key of Object.keys(value)) {
      checkText(key, at);
      copy[key] = extract(value[key], `${at}/${pointerToken(key)}`, above, attachments);
    }
  }
  above.pop();
  return copy;
}

/** Encode strictly.  Returns {text, attachments: [[pointer, bytes], ...]}; undefined as a whole becomes null. */
function encode(value, root) {
  if (value === undefined) return { text: 'null', attachments: [] };
  try {
    check(value, MAX_DEPTH);
    const text = JSON.stringify(value);
    // JSON.stringify writes a lone surrogate as an escape; the walk tells it from a backslash in the text.
    if (!text.includes('\\ud')) return { text, attachments: [] };
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
  }
  const attachments = state.agreed.has('attachments') ? [] : null;
  const copy = extract(value, root, [], attachments);
  return { text: JSON.stringify(copy), attachments: attachments || [] };
}

/** Index just behind the string that begins at `start`. */
function endOfString(text, start) {
  let end = start;
  for (;;) {
    end = text.indexOf('"', end + 1);
    if (end < 0) return text.length;
    let slashes = 0;
    while (text.charCodeAt(end - 1 - slashes) === 92) slashes++;
    if (slashes % 2 === 0) return end + 1;
  }
}

const isDigit = (code) => code >= 48 && code <= 57;

/** A quick look for what badNumbers is to judge: an exponent of three digits, or 16 digits that are no fraction. */
function hasLongNumbers(text) {
  if (/[eE]\+?\d{3}/.test(text)) return true;
  // A run of 16 digits covers one place in every 16.
  for (let at = 15; at < text.length; at += 16) {
    if (!isDigit(text.charCodeAt(at))) continue;
    let first = at;
    let last = at;
    while (isDigit(text.charCodeAt(first - 1))) first--;
    while (isDigit(text.charCodeAt(last + 1))) last++;
    if (last - first >= 15 && text[first - 1] !== '.') return true;
    at += (last - at) & ~15;
  }
  return false;
}

/** The literals of a JSON text that a double would change: {range: the first beyond its range, or null; integers: those beyond 2^53-1, with their paths}. */
function badNumbers(text) {
  const bad = { range: null, integers: [] };
  const literals = /[-+.0-9eE]+/y;
  const path = []; // the key or the number of the place at hand, in each open object and array
  let atKey = false;
  for (let i = 0; i < text.length; ) {
    const c = text.charCodeAt(i);
    if (c === 34) {
      const end = endOfString(text, i);
      if (atKey) path[path.length - 1] = JSON.parse(text.slice(i, end));
      atKey = false;
      i = end;
    } else if (c === 45 || isDigit(c)) {
      literals.lastIndex = i;
      const literal = literals.exec(text)[0];
      const isInteger = /^-?\d+$/.test(literal);
      if (isInteger && !Number.isSafeInteger(Number(literal))) bad.integers.push({ path: path.slice(), digits: literal.slice(0, 80) });
      if (!isInteger && bad.range === null && !Number.isFinite(Number(literal))) bad.range = literal.slice(0, 80);
      i += literal.length;
    } else {
      if (c === 123 || c === 91) path.push((atKey = c === 123) ? '' : 0);
      else if (c === 125 || c === 93) {
        path.pop();
        atKey = false;
      } else if (c === 44) {
        atKey = typeof path[path.length - 1] === 'string';
        if (!atKey) path[path.length - 1]++;
      }
      i++;
    }
  }
  return bad;
}

/** What is wrong with the integers of a request: {number of an item, -1 for all of them: Refusal}. */
function refusalsOf(integers) {
  const refusals = new Map();
  for (const { path, digits } of integers) {
    const item = path[0] === 'batch' && path.length > 1 ? path[1] : -1;
    const place = item < 0 ? path : ['args', ...path.slice(2)];
    const where = place.map((part) => pointerToken(String(part))).join('/');
    if (!refusals.has(item)) refusals.set(item, badArgs(`${where}: integer ${digits} is beyond 2^53-1 and would be rounded; send it as text`));
  }
  return refusals;
}

/** Whether the text nests deeper than MAX_MESSAGE_DEPTH; cheap unless it holds that many brackets. */
function tooDeep(text) {
  let brackets = 0;
  for (const bracket of ['{', '['])
    for (let at = text.indexOf(bracket); at >= 0 && brackets <= MAX_MESSAGE_DEPTH; at = text.indexOf(bracket, at + 1)) brackets++;
  if (brackets <= MAX_MESSAGE_DEPTH) return false;
  let depth = 0;
  for (let i = 0; i < text.length; ) {
    const c = text.charCodeAt(i);
    if (c === 34) {
      i = endOfString(text, i);
      continue;
    }
    if (c === 91 || c === 123) {
      if (++depth > MAX_MESSAGE_DEPTH) return true;
    } else if (c === 93 || c === 125) depth--;
    i++;
  }
  return false;
}

/** Decode UTF-8 without the silent replacement that Buffer.toString makes. */
function strictText(buffer, start, end) {
  const text = buffer.toString('utf8', start, end);
  return text.includes('\ufffd') ? new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(buffer.subarray(start, end)) : text;
}

// ---------------------------------------------------------------------------------------------- replies

const wellFormed = (text) => text.replace(/[\ud800-\udfff]/gu, '\ufffd');

function capped(text) {
  const clean = wellFormed(text);
  if (Buffer.byteLength(clean) <= TEXT_CAP_BYTES) return clean;
  const mark = ' [truncated]';
  return Buffer.from(clean).toString('utf8', 0, TEXT_CAP_BYTES - mark.length - 3).replace(/\ufffd$/, '') + mark;
}

/** What reading a value of the user's gives; undefined if it throws. */
function attempt(read) {
  try {
    return read();
  } catch {
    return undefined;
  }
}

const isA = (value, type) => attempt(() => value instanceof type) === true; // a revoked proxy throws even here

/** The class of a value, in words; never empty. */
function typeName(value) {
  if (value === null || (typeof value !== 'object' && typeof value !== 'function')) return typeof value;
  const sources = [() => value instanceof Error && has(value, 'name') && value.name, () => value.constructor.name, () => value.name];
  const name = sources.map((read) => attempt(read)).find((found) => typeof found === 'string' && found !== '');
  return wellFormed((name ?? 'Object').slice(0, TYPE_CAP));
}

function messageOf(thrown) {
  try {
    const message = thrown?.message;
    if (typeof message === 'string') return message;
    return String(thrown instanceof Error ? message ?? '' : thrown);
  } catch {
    return 'an exception whose message cannot be read';
  }
}

/** Name and message of whatever was thrown; neither is empty. */
function summary(thrown) {
  const type = typeName(thrown);
  return { type, message: capped(messageOf(thrown)) || type };
}

/** Describe whatever was thrown.  Returns {type, message, traceback, data, cause}, the last three maybe undefined; never throws. */
function describe(thrown) {
  const stack = attempt(() => thrown.stack);
  const cause = attempt(() => thrown.cause) ?? null;
  return {
    ...summary(thrown),
    traceback: typeof stack === 'string' ? capped(stack) : undefined,
    // An extra: what cannot be sent of it must not hide the error itself.
    data: attempt(() => extract(thrown.data, 'data', [], null)),
    cause: cause === null ? undefined : summary(cause),
  };
}

/** What stderr shows of whatever was thrown. */
function shown(thrown) {
  const { traceback, message } = describe(thrown);
  return traceback || message;
}

const outBuffer = Buffer.allocUnsafe(3 * CHUNK_BYTES); // UTF-8 takes at most 3 bytes for a unit of a string
let held = 0; // bytes of outBuffer that wait to be written; whole frames, but inside writeLong and writeAttachments

function flush() {
  const length = held;
  held = 0; // first: a failure ends this process, which may have more to say
  if (length > 0) writeAll(frameOut, outBuffer, length);
}

/**
 * Put one frame of text behind those that wait to be written together.  Returns 0, or its size if above the limit.
 *
 * @param text What may be long stands alone, between `before` and `after`: to join them would copy it.
 */
function holdFrame(before, text = '', after = '') {
  const units = before.length + text.length + after.length;
  if (units <= CHUNK_BYTES && units * 3 <= state.maxFrame) {
    if (held > 0 && held + 4 + units * 3 > outBuffer.length) flush();
    const size = outBuffer.write(before + text + after, held + 4, 'utf8');
    outBuffer.writeUInt32BE(size, held);
    held += size + 4;
    if (held > CHUNK_BYTES) flush();
    return 0;
  }
  const parts = [before, text, after];
  const size = parts.reduce((sum, part) => sum + Buffer.byteLength(part), 0);
  if (size > state.maxFrame) return size;
  flush();
  held = outBuffer.writeUInt32BE(size, 0);
  parts.forEach(writeLong);
  flush();
  return 0;
}

/** Write one frame of text and those that wait.  Returns 0, or its size if above the limit. */
function writeFrame(before, text, after) {
  const size = holdFrame(before, text, after);
  flush();
  return size;
}

/** Encode and write text piece by piece: a pipe takes no more at a time, and the pieces stay in the caches. */
function writeLong(text) {
  for (let from = 0; from < text.length; ) {
    let to = Math.min(text.length, from + CHUNK_BYTES - held);
    if (to < text.length && (text.charCodeAt(to - 1) & 0xfc00) === 0xd800) to--; // a pair stays together
    held += outBuffer.write(text.substring(from, to), held, 'utf8');
    from = to;
    if (held > CHUNK_BYTES - 2) flush(); // so that there is room for two units, which may be a pair
  }
}

function writeAttachments(attachments) {
  for (const [, data] of attachments) {
    for (let from = 0; from < data.length; from += state.maxFrame) {
      const part = data.subarray(from, Math.min(data.length, from + state.maxFrame));
      held = outBuffer.writeUInt32BE(part.length, 0);
      const first = part.subarray(0, CHUNK_BYTES - 4);
      outBuffer.set(first, 4);
      held += first.length;
      flush();
      if (part.length > first.length) writeAll(frameOut, part.subarray(first.length), part.length - first.length);
    }
  }
}

const head = (id, index) => (index < 0 ? `{"id":${id}` : `{"id":${id},"index":${index}`);
const tail = () => (state.level === 0 ? `,"timestamp":"${new Date().toISOString()}"}` : '}');

/** Answer with an error; what does not fit into a frame is cut down to what does. */
function replyError(id, index, code, error) {
  const { type, message, traceback = null, data, cause } = error;
  const put = index < 0 ? writeFrame : holdFrame; // the replies of a batch wait for each other
  const write = (body) => put(`${head(id, index)},"success":false,"error":${JSON.stringify(body)}${tail()}`);
  const body = (more, units = Infinity) => {
    const [name, text] = [type, message].map((words) => (words.length > units ? wellFormed(words.slice(0, units)) : words));
    return state.agreed.has('errors') ? { code, type: name, message: text, ...more, language: 'javascript' } : text;
  };
  let size = attempt(() => write(body({ traceback, data, cause }))); // undefined: too long for any string
  // A character takes up to six bytes, and there are two texts.
  for (let units = state.maxFrame >> 3; size !== 0 && units > 0; units >>= 1) size = write(body({ traceback: null }, units));
  if (size === 0) return;
  complain(`a limit of ${state.maxFrame} bytes (max_frame) leaves no room for an error: ${message}`);
  process.exit(2);
}

function replyResult(id, index, result) {
  let encoded;
  let size = 0;
  try {
    encoded = encode(result, 'result');
    const listed = encoded.attachments.map(([pointer, data]) => ({ path: pointer, kind: 'bytes', len: data.length }));
    const extra = listed.length > 0 ? `,"attachments":${JSON.stringify(listed)}` : '';
    const put = index < 0 || listed.length > 0 ? writeFrame : holdFrame;
    size = put(`${head(id, index)},"success":true,"result":`, encoded.text, `${extra}${tail()}`);
  } catch (error) {
    if (isA(error, RangeError) && /string length/.test(error.message)) size = Infinity;
    else {
      const message = isA(error, EncodeError) ? error.message : `result: reading it raised ${describe(error).message}`;
      replyError(id, index, 'encode_error', { type: 'EncodeError', message });
      return;
    }
  }
  if (size > 0) {
    const message = `the encoded reply has ${size} bytes; the limit is ${state.maxFrame} (max_frame)`;
    replyError(id, index, 'too_large', { type: 'ResultTooLarge', message });
  } else writeAttachments(encoded.attachments);
}

function replyThrown(id, index, thrown) {
  if (isA(thrown, Refusal)) replyError(id, index, thrown.code, { type: thrown.type, message: capped(thrown.message) });
  else replyError(id, index, 'handler_error', describe(thrown));
}

// ---------------------------------------------------------------------------------------------- running

/** What a handler gets as its second parameter. */
class Context {
  constructor(job, index) {
    this._job = job;
    this._index = index;
    this._state = undefined;
  }
  get sessionId() { return this._job.session; }
  get session_id() { return this._job.session; }
  get workerId() { return state.workerId; }
  get worker_id() { return state.workerId; }
  get workerState() { return state.workerState; }
  get worker_state() { return state.workerState; }
  /** Seconds left of the caller's time, >= 0; null without a limit. */
  get deadline_s() {
    return this._job.deadline === null ? null : Math.max(0, (this._job.deadline - performance.now()) / 1000);
  }
  get deadlineS() { return this.deadline_s; }
  /** Lives as long as the session on this worker; without a session, as long as the request. */
  get state() {
    const { session } = this._job;
    if (session === null) return this._state || (this._state = {});
    let kept = state.sessions.get(session);
    if (kept === undefined) state.sessions.set(session, (kept = {}));
    return kept;
  }
  /** Send a log record to the host.  After the request has ended, or without the capability: a line on stderr. */
  log(message, level = 'info', fields = {}) {
    const text = capped(String(message));
    let body = '{}';
    try {
      const sent = extract(fields ?? {}, 'fields', [], null);
      body = JSON.stringify(typeof sent === 'object' && !Array.isArray(sent) ? sent : { fields: sent });
    } catch (error) {
      body = JSON.stringify({ encode_error: describe(error).message });
    }
    // A log frame before the first reply would precede the agreement it rests on.
    if (started && current === this && state.agreed.has('log')) {
      const words = `"level":${JSON.stringify(wellFormed(String(level)))},"message":${JSON.stringify(text)}`;
      if (writeFrame(`{"type":"log","id":${this._job.id},${words},"fields":${body}}`) === 0) return;
    }
    complain(`${level}: ${text}${body === '{}' ? '' : ` ${body}`}`);
  }
}

let current = null; // INVARIANT: the Context whose handler has not settled, or null; at most one
const origin = new AsyncLocalStorage(); // the Context of the request that the code at hand came from
let busy = false; // INVARIANT: true from taking a request until its last reply, and while starting
let started = false;
const queue = []; // items behind the running one, each a function that does it
let queuedBytes = 0;

/** One byte a claimed item: with it the item is ours; an empty or closed pipe means the host took it back. */
const claimByte = Buffer.alloc(1);
function claimed() {
  try {
    return fs.readSync(claimFd, claimByte, 0, 1, null) === 1;
  } catch {
    return false;
  }
}

/** Run the items of a job in order.  Returns false if one of them will settle later. */
function run(job) {
  let since = 0;
  while (job.next < job.count) {
    const item = job.next++;
    const index = job.batch === null ? -1 : item;
    if (job.claim && !claimed()) {
      holdFrame(`${head(job.id, index)},"type":"recalled"}`);
      continue;
    }
    // Nothing waits behind a handler, but the youngest replies of a batch.
    const now = job.batch === null ? Infinity : performance.now();
    if (now - since > BATCH_WAIT_MS) {
      flush();
      since = now;
    }
    state.requests++;
    const problem = job.problem ?? job.refusals?.get(-1) ?? job.refusals?.get(index);
    if (problem) {
      replyThrown(job.id, index, problem);
      continue;
    }
    const context = (current = new Context(job, index));
    let result;
    try {
      result = origin.run(context, job.handler, job.batch === null ? job.args : job.batch[item], context);
      if (result !== null && typeof result === 'object' && typeof result.then === 'function') {
        Promise.resolve(result).then(
          (value) => settle(context, () => replyResult(job.id, index, value)),
          (error) => settle(context, () => replyThrown(job.id, index, error)),
        );
        flush();
        return false;
      }
    } catch (error) {
      current = null;
      replyThrown(job.id, index, error);
      continue;
    }
    current = null;
    replyResult(job.id, index, result);
  }
  if (job.batch !== null) flush();
  return true;
}

function settle(context, reply) {
  // RACE: 1. a timer of the handler throws  2. its request is answered with that  3. its promise settles as
  // well.  Only the first counts, and by then `current` is null or another request's
  // (tests/conformance/test_javascript.py::test_promise_that_resolves_after_its_request_was_answered_is_ignored).
  if (current !== context) return;
  current = null;
  reply();
  if (run(context._job)) next();
}

/** Take what is queued until something has to be waited for. */
function next() {
  busy = false;
  while (!busy && queue.length > 0) {
    const { size, work } = queue.shift();
    queuedBytes -= size;
    work();
  }
  flush();
  if (!busy && input !== null) input.resume();
}

function enqueue(size, work) {
  if (!busy && queue.length === 0) work();
  else {
    queue.push({ size, work });
    queuedBytes += size;
  }
}

function perform(message, received, refusals = null) {
  if (!started) {
    start(message, refusals);
    return;
  }
  const { id, command } = message;
  const { args = {}, session = null, deadline_ms: budget = null, claim = false, batch } = state.level > 0 ? message : { args: message.args };
  let problem = null;
  if (budget !== null && typeof budget !== 'number') problem = badArgs(`request ${id}: 'deadline_ms' must be a number`);
  else if (session !== null && typeof session !== 'string') problem = badArgs(`request ${id}: 'session' must be a string`);
  else if (batch !== undefined && !Array.isArray(batch)) problem = badArgs(`request ${id}: 'batch' must be an array`);
  else if (batch !== undefined && batch.length === 0) problem = badArgs(`request ${id}: 'batch' must not be empty`);
  else if (claim === true && claimFd < 0) {
    problem = new Refusal('internal', 'ProtocolError', 'claim: SNAKEPIT_CLAIM_FD was not given to this worker');
  } else if (typeof command !== 'string') problem = badArgs(`request ${id}: 'command' must be a string`);
  const handler = problem === null ? state.commands.get(command) : undefined;
  if (problem === null && handler === undefined) {
    const available = [...state.commands.keys()].sort().join(', ');
    problem = new Refusal('unknown_command', 'UnknownCommand', `Unknown command: '${command}'. Available: ${available}`);
  }
  const items = Array.isArray(batch) && batch.length > 0 ? batch : null;
  const job = {
    id,
    handler,
    problem,
    refusals,
    args,
    batch: items,
    next: 0,
    count: items === null ? 1 : items.length,
    session: typeof session === 'string' ? session : null,
    deadline: typeof budget === 'number' ? received + budget : null,
    claim: claim === true && claimFd >= 0,
  };
  busy = true;
  if (run(job)) busy = false;
}

// ---------------------------------------------------------------------------------------------- start

/** Negotiate, load the handlers, run onStart, and only then answer the first request. */
function start(message, refusals) {
  busy = true;
  const args = message.args !== null && typeof message.args === 'object' ? message.args : {};
  const offer = args.protocol;
  const job = { id: message.id, session: null, deadline: null, next: 1, count: 1, batch: null, problem: null };
  const context = (current = new Context(job, -1));
  const offered = offer !== null && typeof offer === 'object' && Array.isArray(offer.versions) && offer.versions.includes(1);
  if (message.command === 'ping' && offered) negotiate(offer);
  if (typeof args.worker_id === 'string') state.workerId = args.worker_id;
  const finish = () => {
    if (current !== context) return;
    current = null;
    started = true;
    if (offered && message.command === 'ping') {
      state.requests++;
      replyResult(message.id, -1, { ...ping(args), protocol: handshake() });
    } else perform(message, performance.now());
    if (current === null) next();
  };
  if (refusals !== null) {
    startFailed(context, [...refusals.values()][0]);
    return;
  }
  load(context, args.start_args === undefined ? null : args.start_args).then(finish, (error) => startFailed(context, error));
}

function startFailed(context, error) {
  if (current !== context) return;
  complain(`could not start: ${shown(error)}`);
  replyThrown(context._job.id, -1, error);
  process.exit(1);
}

function negotiate(offer) {
  state.level = 1;
  if (Number.isSafeInteger(offer.max_frame) && offer.max_frame > 0) state.maxFrame = Math.min(offer.max_frame, LARGEST_MAX_FRAME);
  const ours = ['errors', 'pipeline', 'session', 'deadline', 'attachments', 'batch', 'log', ...(claimFd < 0 ? [] : ['claim'])];
  const theirs = Array.isArray(offer.capabilities) ? offer.capabilities : [];
  state.agreed = new Set(ours.filter((name) => theirs.includes(name)));
}

function handshake() {
  const commands = {};
  for (const name of [...state.commands.keys()].sort()) commands[name] = signature(state.commands.get(name));
  return {
    version: 1,
    max_frame: state.maxFrame,
    capabilities: [...state.agreed],
    language: 'javascript',
    runtime: process.versions.node,
    bridge: BRIDGE_VERSION,
    pid: process.pid,
    commands,
  };
}

/** The names a handler takes out of its args, when it says so by a flat pattern: `({ a, b = 1 }) => ...`. */
function signature(handler) {
  const builtIn = BUILT_IN_SIGNATURES.get(handler);
  if (builtIn !== undefined) return builtIn;
  const pattern = /^(?:async\s+)?(?:function\s*\*?\s*[\w$]*\s*|[\w$]+\s*)?\(\s*\{([^{}()]*)\}/.exec(Function.prototype.toString.call(handler));
  const params = pattern === null ? [] : pattern[1].split(',').map((part) => part.trim().split(/[\s:=]/)[0]);
  return { params: params.filter((name) => /^[\w$]+$/.test(name)), doc: typeof handler.doc === 'string' ? wellFormed(handler.doc) : '' };
}

async function load(context, startArgs) {
  for (const [name, handler] of Object.entries(builtIns)) state.commands.set(name, handler);
  if (handlersOption === null) {
    refuseStartArgs(startArgs);
    return;
  }
  const exported = await importHandlers(handlersOption);
  const wrapped = exported.default !== null && typeof exported.default === 'object' ? exported.default : {};
  const all = { ...wrapped, ...exported };
  for (const [name, value] of Object.entries(all)) {
    if (typeof value !== 'function' || name === 'onStart' || name === 'default' || name === 'ping') continue;
    if (/^class\b/.test(Function.prototype.toString.call(value))) continue;
    state.commands.set(name, value);
  }
  if (typeof all.onStart === 'function') await all.onStart(startArgs, context);
  else refuseStartArgs(startArgs);
}

function refuseStartArgs(startArgs) {
  if (startArgs !== null) throw badArgs('start_args were given, but the handlers export no onStart function');
}

async function importHandlers(name) {
  const file = path.resolve(name);
  const local = createRequire(path.join(process.cwd(), 'handlers.js'));
  const target = fs.existsSync(file) ? file : local.resolve(name);
  if (!target.endsWith('.mjs')) {
    try {
      return local(target);
    } catch (error) {
      // A .js file of a package with "type": "module", or one that awaits at its top level.
      if (error.code !== 'ERR_REQUIRE_ESM' && error.code !== 'ERR_REQUIRE_ASYNC_MODULE') throw error;
    }
  }
  return import(pathToFileURL(target).href);
}

// ---------------------------------------------------------------------------------------------- built-ins

const now = () => Date.now() / 1000;

function ping(args) {
  let echo = args;
  if (args !== null && typeof args === 'object' && !Array.isArray(args) && !(args instanceof Uint8Array)) {
    echo = { ...args };
    delete echo.protocol; // the handshake's own words; start_args may be large
    delete echo.start_args;
    delete echo.prepare;
  }
  return {
    status: 'ok',
    bridge_type: 'generic_javascript',
    uptime: (Date.now() - startedAt) / 1000,
    requests_handled: state.requests,
    timestamp: now(),
    node_version: process.version,
    platform: process.platform,
    worker_id: args !== null && typeof args === 'object' && typeof args.worker_id === 'string' ? args.worker_id : state.workerId,
    echo,
  };
}

const has = (object, name) => Object.prototype.hasOwnProperty.call(object, name);

function needObject(command, args) {
  if (args === null || typeof args !== 'object' || Array.isArray(args) || args instanceof Uint8Array)
    throw badArgs(`${command}: args must be an object`);
}

function choose(command, what, table, name) {
  if (typeof name === 'string' && has(table, name)) return table[name];
  const shown = (typeof name === 'string' ? name : JSON.stringify(name)).slice(0, 200);
  throw badArgs(`${command}: unknown ${what} '${shown}'; one of ${Object.keys(table).sort().join(', ')}`);
}

function needNumber(command, field, value) {
  if (typeof value !== 'number') throw badArgs(`${command}: field '${field}' must be a number`);
  return value;
}

const OPERATIONS = {
  add: (a, b) => a + b,
  subtract: (a, b) => a - b,
  multiply: (a, b) => a * b,
  divide: (a, b) => {
    if (b === 0) throw badArgs('compute: division by zero');
    return a / b;
  },
  power: (a, b) => a ** b,
  sqrt: (a) => {
    if (a < 0) throw badArgs('compute: square root of a negative number');
    return Math.sqrt(a);
  },
};

const DISTRIBUTIONS = {
  uniform: (field) => {
    const min = field('min', 0);
    return Math.random() * (field('max', 1) - min) + min;
  },
  integer: (field) => {
    const min = Math.ceil(field('min', 0));
    return Math.floor(Math.random() * (Math.floor(field('max', 100)) - min + 1)) + min;
  },
  normal: (field) => {
    const radius = Math.sqrt(-2 * Math.log(1 - Math.random())); // Box-Muller; 1 - x is never 0
    return radius * Math.cos(2 * Math.PI * Math.random()) * field('std', 1) + field('mean', 0);
  },
};

const builtIns = {
  ping,
  echo: (args) => ({ status: 'ok', echoed: args, timestamp: now() }),
  compute: (args) => {
    needObject('compute', args);
    const { operation } = args;
    for (const field of operation === 'sqrt' ? ['operation', 'a'] : ['operation', 'a', 'b'])
      if (!has(args, field)) throw badArgs(`compute: missing field '${field}'`);
    const apply = choose('compute', 'operation', OPERATIONS, operation);
    const inputs = { a: needNumber('compute', 'a', args.a) };
    if (operation !== 'sqrt') inputs.b = needNumber('compute', 'b', args.b);
    const result = apply(inputs.a, inputs.b);
    if (!Number.isFinite(result)) throw badArgs('compute: result is not a finite number');
    return { status: 'ok', operation, inputs, result, timestamp: now() };
  },
  info: () => ({
    status: 'ok',
    bridge_info: {
      name: 'Generic Snakepit JavaScript Bridge',
      version: BRIDGE_VERSION,
      supported_commands: [...state.commands.keys()].sort(),
      uptime: (Date.now() - startedAt) / 1000,
      total_requests: state.requests,
    },
    system_info: { node_version: process.version, platform: process.platform, arch: process.arch, memory_usage: process.memoryUsage() },
    timestamp: now(),
  }),
  random: (args) => {
    needObject('random', args);
    const type = has(args, 'type') ? args.type : 'uniform';
    const field = (name, fallback) => (has(args, name) ? needNumber('random', name, args[name]) : fallback);
    const value = choose('random', 'type', DISTRIBUTIONS, type)(field);
    return { status: 'ok', type, parameters: args, value, timestamp: now() };
  },
};

const BUILT_IN_SIGNATURES = new Map([
  [builtIns.ping, { params: [], doc: 'Tell that the worker is well.' }],
  [builtIns.echo, { params: [], doc: 'Return the args as they came.' }],
  [builtIns.compute, { params: ['operation', 'a', 'b'], doc: 'Add, subtract, multiply, divide, raise to a power, or take a square root.' }],
  [builtIns.info, { params: [], doc: 'Describe the bridge and its system.' }],
  [builtIns.random, { params: ['type', 'min', 'max', 'mean', 'std'], doc: 'Draw a uniform, integer or normal random number.' }],
]);

// ---------------------------------------------------------------------------------------------- reading

/** Say what was seen, and answer as far as possible. */
function badFrame(seen, reason, id) {
  const message = `bad frame: ${reason}; bytes seen: ${JSON.stringify(seen.toString('latin1', 0, 80))}`;
  complain(message);
  replyError(id, -1, 'internal', { type: 'BadFrame', message });
}

/** The length cannot be trusted, so neither can anything behind it. */
function fatalFrame(seen, reason) {
  broken = true;
  const copy = Buffer.from(seen.subarray(0, 80));
  enqueue(0, () => {
    badFrame(copy, reason, null);
    process.exit(2);
  });
}

let input = null;
let broken = false;
const header = Buffer.alloc(4);
let headerFilled = 0;
let frame = null; // a frame that came in part, or its place in an attachment
let frameFilled = 0;
let pending = null; // {message, size, blobs, filled}: a request whose attachment frames are still to come

/** Take `length` bytes of `chunk`, however the frames are cut.  Returns false to stop reading for a while. */
function feed(chunk, length) {
  let at = 0;
  while (at < length && !broken) {
    if (frame === null) {
      while (headerFilled < 4 && at < length) header[headerFilled++] = chunk[at++];
      if (headerFilled < 4) break;
      headerFilled = 0;
      const size = header.readUInt32BE(0);
      if (size === 0 || size > state.maxFrame) {
        const seen = Buffer.concat([header, chunk.subarray(at, Math.min(length, at + 76))]);
        fatalFrame(seen, size === 0 ? 'a frame of length 0' : `a frame of length ${size}, above the limit of ${state.maxFrame}`);
        break;
      }
      if (pending === null && length - at >= size) {
        onFrame(chunk, at, at + size);
        at += size;
        continue;
      }
      frame = pending === null ? Buffer.allocUnsafe(size) : attachmentPlace(size);
      if (frame === null) break;
      frameFilled = 0;
    }
    const part = Math.min(frame.length - frameFilled, length - at);
    chunk.copy(frame, frameFilled, at, at + part);
    at += part;
    filled(part);
  }
  flush();
  return mayReadOn();
}

// While paused the end of input cannot be seen, so this comes late and only bounds the memory.
const mayReadOn = () => !broken && (!busy || queuedBytes <= 2 * state.maxFrame);

/** Note that `count` further bytes of the frame have come. */
function filled(count) {
  frameFilled += count;
  if (frameFilled < frame.length) return;
  const whole = frame;
  frame = null;
  if (pending === null) onFrame(whole, 0, whole.length);
  else {
    pending.filled += whole.length;
    if (pending.filled === pending.blobs[pending.blobs.length - 1].length) nextAttachment();
  }
}

function onFrame(buffer, start, end) {
  const size = end - start;
  const reject = (reason, id = null) => {
    const seen = Buffer.from(buffer.subarray(start, Math.min(end, start + 80)));
    enqueue(0, () => badFrame(seen, reason, id));
  };
  let text;
  let message;
  try {
    if (buffer[start] !== 123) throw new SyntaxError('not an object');
    text = strictText(buffer, start, end);
    if (tooDeep(text)) return reject(`nested deeper than ${MAX_MESSAGE_DEPTH} levels`, knownId(buffer, start, end));
    message = JSON.parse(text);
  } catch {
    return reject('not a JSON object in UTF-8', knownId(buffer, start, end));
  }
  if (message.command === undefined && message.type !== undefined) {
    if (message.type === 'session_end') enqueue(0, () => state.sessions.delete(message.session));
    return undefined;
  }
  const { id } = message;
  if (!Number.isSafeInteger(id) || id < 0) return reject('no integer id from 0 to 2^53-1');
  // JSON.stringify escapes no surrogate but a lone one; the walk tells it from a backslash in the text.
  if (text.includes('\\u') && /\\u[dD][89a-fA-F]/.test(text) && JSON.stringify(message).includes('\\ud')) {
    try {
      checkTexts(message, 'message');
    } catch (error) {
      return reject(error.message, id);
    }
  }
  let refusals = null;
  if (hasLongNumbers(text)) {
    const { range, integers } = badNumbers(text);
    if (range !== null) return reject(`number ${range} is out of range`, id);
    if (integers.length > 0) refusals = refusalsOf(integers);
  }
  const received = message.deadline_ms === undefined ? 0 : performance.now();
  if (state.level > 0 && Array.isArray(message.attachments) && message.attachments.length > 0) expectAttachments(message, size, received, refusals);
  else enqueue(size, () => perform(message, received, refusals));
  return undefined;
}

/** The id of a frame that is no JSON, if one can be seen. */
function knownId(buffer, start, end) {
  const found = /[{,]\s*"id"\s*:\s*(\d{1,15})\s*[,}]/.exec(buffer.toString('latin1', start, Math.min(end, start + 4096)));
  return found === null ? null : Number(found[1]);
}

function expectAttachments(message, size, received, refusals) {
  let total = 0;
  for (const entry of message.attachments) {
    if (entry === null || typeof entry !== 'object' || !Number.isSafeInteger(entry.len) || entry.len < 0)
      return fatalFrame(Buffer.from(JSON.stringify(entry)), 'an attachment without a length');
    total += entry.len;
  }
  pending = { message, received, refusals, size: size + total, blobs: [], filled: 0 };
  return nextAttachment();
}

/** Open the blob that the next raw frame belongs to; with none left the request is complete. */
function nextAttachment() {
  const { message, blobs } = pending;
  while (blobs.length < message.attachments.length) {
    const { len } = message.attachments[blobs.length];
    blobs.push(Buffer.allocUnsafe(len));
    pending.filled = 0;
    if (len > 0) return;
  }
  const { size, received, refusals } = pending;
  pending = null;
  const reason = insertAttachments(message, blobs);
  if (reason === null) enqueue(size, () => perform(message, received, refusals));
  else enqueue(0, () => replyThrown(message.id, -1, badArgs(reason)));
}

/** Where the bytes of an attachment frame belong; null when its length is not the announced one. */
function attachmentPlace(size) {
  const blob = pending.blobs[pending.blobs.length - 1];
  const expected = Math.min(state.maxFrame, blob.length - pending.filled);
  if (size === expected) return blob.subarray(pending.filled, pending.filled + size);
  fatalFrame(header, `an attachment frame of ${size} bytes where ${expected} were announced`);
  return null;
}

/** Put the bytes where the null values are.  Returns the reason if that is impossible, else null. */
function insertAttachments(message, blobs) {
  for (const [k, { path: pointer, kind }] of message.attachments.entries()) {
    if (kind !== 'bytes') return `attachment kind ${JSON.stringify(kind)} is not supported`;
    const tokens = typeof pointer === 'string' ? pointer.split('/').slice(1).map((t) => t.replace(/~1/g, '/').replace(/~0/g, '~')) : [];
    let place = message;
    const last = tokens.pop();
    for (const token of tokens) {
      place = place !== null && typeof place === 'object' && has(place, token) ? place[token] : null;
    }
    if (place === null || typeof place !== 'object' || !has(place, last) || place[last] !== null)
      return `attachment path ${JSON.stringify(pointer)} names no null value`;
    Object.defineProperty(place, last, { value: blobs[k], writable: true, enumerable: true, configurable: true });
  }
  return null;
}

function onEnd() {
  if (broken) return; // the reply and the exit status are on their way
  if (frame !== null || headerFilled > 0 || pending !== null) {
    const seen = frame === null ? header.subarray(0, headerFilled) : frame.subarray(0, Math.min(frameFilled, 80));
    badFrame(seen, 'the request stream ended inside a frame', null);
    process.exit(2);
  }
  process.exit(0); // also while a handler is pending: the host that wanted its result is gone
}

/**
 * Read through the event loop, so that handlers' timers and sockets live while the bridge is idle.
 *
 * Measured with a pipe ping-pong on two cores: blocking fs.readSync 9 us a round trip, net.Socket with its own
 * buffer 11 us, fs.createReadStream 31 to 43 us.
 */
function listen(fd) {
  try {
    const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
    // The middle of a long frame goes from the pipe to its place; its end comes with what follows it.
    const buffer = () => (frame !== null && frame.length - frameFilled >= CHUNK_BYTES ? frame.subarray(frameFilled) : chunk);
    const callback = (count, into) => {
      if (into === chunk) return feed(chunk, count);
      filled(count);
      flush();
      return mayReadOn();
    };
    input = new net.Socket({ fd, readable: true, writable: false, onread: { buffer, callback } });
  } catch {
    input = fs.createReadStream('', { fd }); // a file: net.Socket takes pipes and sockets only
    input.on('data', (chunk) => {
      if (!feed(chunk, chunk.length)) input.pause();
    });
  }
  input.on('end', onEnd);
  input.on('error', onEnd);
  input.resume();
}

// ---------------------------------------------------------------------------------------------- main

let handlersOption = null;

function main(argv) {
  for (let i = 0; i < argv.length; i++) {
    const [name, inline] = argv[i].split(/=(.*)/s);
    if (name !== '--handlers' && name !== '--mode') usage(`unknown option ${argv[i]}; usage: snakepit_bridge.js [--handlers FILE]`);
    const value = inline === undefined ? argv[++i] : inline;
    if (value === undefined) usage(`option ${name} needs a value`);
    if (name === '--handlers') handlersOption = value;
  }
  const fd = takeDescriptors();
  process.on('SIGINT', () => {}); // Ctrl-C in a terminal reaches the whole group: the host decides
  process.on('uncaughtException', (error) => {
    // Not known: what the loading of the handlers began, and before Node 24 a microtask.  The running request might
    // wait for ever for what has thrown there, so it is answered.
    const context = origin.getStore() ?? current;
    if (context === null) complain(`exception outside a request: ${shown(error)}`);
    else if (context !== current) complain(`exception of request ${context._job.id} after its reply: ${shown(error)}`);
    else if (!started) startFailed(context, error);
    else settle(context, () => replyThrown(context._job.id, context._index, error));
  });
  // Never the reply of its request: that has a promise of its own, and this one may still be handled.
  process.on('unhandledRejection', (error) => {
    const context = origin.getStore();
    complain(`unhandled rejection${context === undefined ? '' : ` of request ${context._job.id}`}: ${shown(error)}`);
  });
  listen(fd);
}

main(process.argv.slice(2));

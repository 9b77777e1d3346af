// The commands of a chaos run in Node; what they do is said in calls.py.
"use strict";

const crypto = require("crypto");
const fs = require("fs");

let log = null;

function note(...words) {
  if (log === null) log = fs.openSync(process.env.CHAOS_LOG, "a", 0o600);
  fs.writeSync(log, `${words.join(" ")}\n`);
}

const nap = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

async function perform(how, arg) {
  if (how === "nap") {
    await nap(arg);
  } else if (how === "spin") {
    const end = process.hrtime.bigint() + BigInt(Math.round(arg * 1e9));
    while (process.hrtime.bigint() < end);
  } else if (how === "fail") {
    throw new RangeError(String(arg));
  } else if (how === "exit") {
    process.exit(arg);
  } else if (how === "hang") {
    await nap(600);
  } else if (how === "stubborn") {
    process.on("SIGTERM", () => {});
    await nap(600);
  } else if (how === "stop") {
    process.kill(process.pid, "SIGSTOP");
  } else if (how === "noise") {
    process.stderr.write(`${"noise ".repeat(arg)}\n`);
  } else if (how === "bytes") {
    return Buffer.alloc(arg);
  } else if (how === "unsendable") {
    return NaN;
  } else if (how === "swallow") {
    return arg.length;
  }
  return null;
}

exports.step = async ({ rid, how = "quick", arg = null }) => {
  note("S", rid, process.pid);
  return [rid, process.pid, await perform(how, arg)];
};

exports.visit = async ({ rid, how = "quick", arg = null }, ctx) => {
  const { state } = ctx;
  if (state.nonce === undefined) state.nonce = crypto.randomBytes(8).toString("hex");
  state.n = (state.n || 0) + 1;
  note("S", rid, process.pid, state.nonce, state.n);
  const answer = [rid, process.pid, state.nonce, state.n, state.steps || 0];
  await perform(how, arg);
  return answer;
};

exports.settle_in = ({ place, pinned }, ctx) => {
  const { state } = ctx;
  if (pinned && ((state.steps || 0) !== place || state.n !== undefined)) {
    throw new Error(`set-up step ${place} found ${JSON.stringify(state)}`);
  }
  state.steps = place + 1;
};

// The deeds of deeds.py, in Node.
'use strict';

const { spawn } = require('child_process');
const fs = require('fs');
const path = require('path');

const AT_MOST_MS = 120000;

/** Block the only thread inside C++: no event, no signal handler and no exit can run. */
function block() {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, AT_MOST_MS);
}

function foundFamily(folder, bare) {
  const sleep = (options) => spawn('sleep', ['120'], { stdio: ['ignore', 'inherit', 'inherit'], ...options }).pid;
  const pids = { worker: process.pid, plain: sleep({}), escaped: sleep({ detached: true }) };
  const env = { PATH: process.env.PATH };
  if (bare) Object.assign(pids, { bare: sleep({ env }), vanished: sleep({ env, detached: true }) });
  const note = path.join(folder, `${process.pid}.json`);
  fs.writeFileSync(`${note}.new`, JSON.stringify(pids));
  fs.renameSync(`${note}.new`, note);
}

const deeds = {
  starting: () => new Promise(() => setInterval(() => {}, 1000)),
  idle: () => process.pid,
  loop: () => {
    for (;;);
  },
  c_call: block,
  stopped: () => process.kill(process.pid, 'SIGSTOP'),
  draining: (folder) => {
    process.on('SIGTERM', () => {});
    process.on('exit', () => {
      fs.writeFileSync(path.join(folder, `${process.pid}.leaving`), '');
      block();
    });
    return process.pid;
  },
};

exports.act = ({ deed, folder }) => {
  foundFamily(folder, deed.startsWith('bare_'));
  return deeds[deed.replace('bare_', '')](folder);
};

exports.onStart = async (args) => {
  if (args) await exports.act(args);
};

// Commands that tell what limits their process has, and run into them.
'use strict';
const { execFileSync } = require('child_process');
const fs = require('fs');
const os = require('os');

exports.facts = ({ file }) => {
  if (file) fs.closeSync(fs.openSync(file, 'w', 0o666));
  const script = 'ulimit -S -n; ulimit -H -n; ulimit -S -v; umask; nice';
  return {
    pid: process.pid,
    cwd: process.cwd(),
    nice: os.getPriority(),
    mode: file ? fs.statSync(file).mode & 0o777 : null,
    env: { ...process.env },
    child: execFileSync('sh', ['-c', script]).toString().trim().split(/\s+/),
  };
};

exports.burn = () => {
  for (;;);
};

exports.open_many = ({ count }) => {
  const fds = [];
  try {
    for (let n = 0; n < count; n += 1) fds.push(fs.openSync('/dev/null'));
    return fds.length;
  } finally {
    fds.forEach((fd) => fs.closeSync(fd));
  }
};

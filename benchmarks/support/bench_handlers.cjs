// Commands for the benchmarks, in Node.
"use strict";

const net = require("net");

exports.nothing = () => null;

exports.mirror = ({ value }) => value;

// Arrive at the host's socket and stay until it lets go.
exports.meet = ({ path }) =>
  new Promise((resolve, reject) => {
    const connection = net.connect(path);
    connection.on("data", () => connection.end());
    connection.on("close", () => resolve(null));
    connection.on("error", reject);
  });

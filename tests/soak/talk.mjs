// socket.io clients that talk for as long as standard input is open, and come back by themselves.
// Configuration as JSON in argv: clients (name, url, mode, address), pause (seconds, from and to).
// Standard input: lines of JSON, {quiet}. Standard output: lines of JSON, what has happened to whom.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(new URL("../e2e/package.json", import.meta.url));
const { io } = require("socket.io-client");

const { clients, pause } = JSON.parse(process.argv[2]);
const TRANSPORTS = { polling: ["polling"], websocket: ["websocket"], upgrade: ["polling", "websocket"] };
const say = (what, more) => process.stdout.write(JSON.stringify({ what, ...more }) + "\n");
const now = () => Number(process.hrtime.bigint()) / 1e9;  // the clock that Python calls monotonic
let quiet = false;
let numbers = 0;

for (const { name: client, url, mode, address } of clients) {
  const socket = io(url, {
    transports: TRANSPORTS[mode],
    extraHeaders: { "X-Forwarded-For": address },
    forceNew: true,
    reconnectionDelay: 100,
    reconnectionDelayMax: 500,
  });
  let welcomed = false;
  socket.on("welcome", (about) => {
    welcomed = true;
    say("welcome", { client, sid: socket.id, about, at: now() });
  });
  socket.on("disconnect", (reason) => {
    welcomed = false;
    const final = !socket.active;
    say("disconnect", { client, reason, final });
    if (final) setTimeout(() => socket.connect(), 200);  // so that the load goes on
  });
  const speak = () => {
    setTimeout(speak, 1000 * (pause[0] + Math.random() * (pause[1] - pause[0])));
    if (!welcomed || quiet) return;
    const event = `j${process.pid}-${numbers++}`, sid = socket.id;
    say("sent", { client, sid, event, at: now() });
    socket.emit("echo", { event }, (answer) => say("ack", { client, sid, event, answer }));
  };
  speak();
}

const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => { ({ quiet } = JSON.parse(line)); });
lines.on("close", () => process.exit(0));

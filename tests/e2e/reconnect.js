// socket.io clients that come back by themselves. Configuration as JSON in argv: url, count, mode.
// Answers: one line of JSON with [sid, worker] of each when all are connected, and another one when
// those of `lost` (a line of JSON on stdin: sids) have come back and everyone has got an echo.
import { io } from "socket.io-client";
import { createInterface } from "node:readline";

const { url, count, mode } = JSON.parse(process.argv[2]);
const transports = {
  polling: ["polling"], websocket: ["websocket"], upgrade: ["polling", "websocket"],
}[mode];
const lines = createInterface({ input: process.stdin });

const clients = Array.from({ length: count }, (_, number) => {
  const socket = io(url, {
    transports, forceNew: true, reconnectionDelay: 100, reconnectionDelayMax: 500,
    extraHeaders: { "X-Forwarded-For": `198.51.100.${number}` },
  });
  const client = { socket, sid: null, worker: null };
  socket.on("welcome", (data) => {
    client.sid = socket.io.engine.id;
    client.worker = data.worker;
    changed();
  });
  return client;
});

let changed = () => {};
function when(condition) {
  return new Promise((resolve) => {
    changed = () => { if (condition()) resolve(); };
    changed();
  });
}
const say = () => console.log(JSON.stringify(clients.map(({ sid, worker }) => [sid, worker])));

await when(() => clients.every((client) => client.sid));
say();
for await (const line of lines) {
  const lost = new Set(JSON.parse(line));
  await when(() => clients.every((client) => client.socket.connected && !lost.has(client.sid)));
  await Promise.all(clients.map(async (client) => {
    const answer = await client.socket.timeout(30_000).emitWithAck("echo", client.sid);
    if (answer.worker !== client.worker || answer.data !== client.sid) throw new Error(client.sid);
  }));
  say();
  break;
}
for (const { socket } of clients) socket.disconnect();
process.exit(0);

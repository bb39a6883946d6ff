// Clients that all shout, and all listen. Configuration as JSON in argv:
//   url, addresses (one client each), mode ("polling", "websocket"), shouts (per client)
// Answer: one line of JSON with what each client heard.
import { io } from "socket.io-client";

const { url, addresses, mode, shouts } = JSON.parse(process.argv[2]);
const ended = new Promise((resolve) => process.stdin.on("end", resolve).resume());
const answers = addresses.map((address) => ({ address, heard: [] }));

const sockets = await Promise.all(answers.map((answer) => new Promise((resolve, reject) => {
  const socket = io(url, {
    transports: [mode],
    extraHeaders: { "X-Forwarded-For": answer.address },
    forceNew: true,
    reconnection: false,
  });
  socket.on("connect_error", reject);
  socket.on("shout", (event) => answer.heard.push(event.data));
  socket.on("welcome", (event) => { answer.worker = event.worker; resolve(socket); });
})));

for (const [index, socket] of sockets.entries())
  for (let number = 0; number < shouts; number++) socket.emit("shout", [addresses[index], number]);

const expected = addresses.length * shouts;
const deadline = Date.now() + 30_000;
while (answers.some((answer) => answer.heard.length < expected) && Date.now() < deadline)
  await new Promise((resolve) => setTimeout(resolve, 20));
console.log(JSON.stringify(answers));
await ended;
for (const socket of sockets) socket.disconnect();

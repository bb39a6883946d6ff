// Many socket.io clients at once. Configuration as JSON in argv:
//   url, addresses (one client each), mode ("polling", "websocket", "upgrade"), echoes (per client)
// Answer: one line of JSON with what each client saw. The connections stay open until stdin ends.
import { io } from "socket.io-client";

const { url, addresses, mode, echoes } = JSON.parse(process.argv[2]);
const TRANSPORTS = { polling: ["polling"], websocket: ["websocket"], upgrade: ["polling", "websocket"] };
const DEADLINE = 60_000;

const open = [];

function within(what, start) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`never: ${what}`)), DEADLINE);
    start((value) => { clearTimeout(timer); resolve(value); },
          (error) => { clearTimeout(timer); reject(error); });
  });
}

async function client(address) {
  const socket = io(url, {
    transports: TRANSPORTS[mode],
    extraHeaders: { "X-Forwarded-For": address },
    forceNew: true,
    reconnection: false,
    timeout: DEADLINE,
    autoConnect: false,
  });
  open.push(socket);
  const answer = { address, workers: [], acks: 0, events: 0 };
  const sent = new Map();
  socket.on("welcome", (data) => answer.workers.push(data.worker));
  let heardAll;
  socket.on("echo", (event) => {
    answer.workers.push(event.worker);
    if (event.data.text === sent.get(event.data.number)) answer.events += 1;
    if (answer.events === echoes) heardAll?.();
  });
  const lost = new Promise((_, reject) => {
    socket.on("disconnect", (reason) => reject(new Error(`disconnect: ${reason}`)));
  });
  lost.catch(() => {});  // reported where it is awaited
  await within("connect", (resolve, reject) => {
    socket.on("connect_error", (error) => reject(new Error(`connect_error: ${error.message}`)));
    socket.on("connect", () => {
      const engine = socket.io.engine;
      answer.sid = engine.id;
      if (mode !== "upgrade" || engine.transport.name === "websocket") return resolve();
      engine.once("upgradeError", reject);
      engine.once("upgrade", resolve);
    });
    socket.connect();
  });
  answer.transport = socket.io.engine.transport.name;
  for (let number = 0; number < echoes; number++) {
    const text = `${address}/${number}/` + "äöü".repeat(number * 20);
    sent.set(number, text);
    const ack = await Promise.race([lost, socket.timeout(DEADLINE).emitWithAck("echo", { number, text })]);
    answer.workers.push(ack.worker);
    if (ack.data.number === number && ack.data.text === text) answer.acks += 1;
  }
  if (answer.events < echoes)
    await Promise.race([lost, within("all events", (resolve) => { heardAll = resolve; })]);
  return answer;
}

const ended = new Promise((resolve) => process.stdin.on("end", resolve).resume());
const answers = await Promise.all(
  addresses.map((address) => client(address).catch((error) => ({ address, error: String(error) }))),
);
console.log(JSON.stringify(answers));
await ended;
for (const socket of open) socket.disconnect();

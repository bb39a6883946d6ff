// The chat example in a real browser. Configuration as JSON in argv: port, chromium, screenshot.
// Answer: one line of JSON with what the pages showed. It kills a worker on the way.
import { chromium } from "playwright-core";

const { port, chromium: executablePath, screenshot } = JSON.parse(process.argv[2]);
const ARGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run " +
  "--disable-background-networking --disable-component-update --disable-sync").split(" ");
const TIMEOUT = 30_000;

const browser = await chromium.launch({ executablePath, args: ARGS });
const problems = [];

async function open(address) {
  const context = await browser.newContext({ viewport: { width: 1120, height: 720 } });
  const page = await context.newPage();
  page.setDefaultTimeout(TIMEOUT);
  page.on("pageerror", (error) => problems.push(`${address}: ${error}`));
  page.on("console", (message) => {
    // A browser reports each failed connection, and this test breaks some on purpose.
    if (message.type() === "error" && !/net::ERR_|WebSocket connection/.test(message.text()))
      problems.push(`${address}: ${message.text()}`);
  });
  await page.goto(address);
  return page;
}

async function connected(page, otherThan = "") {
  await page.waitForFunction((pid) => {
    const { state, pid: current } = document.getElementById("state").dataset;
    return state === "connected" && current !== pid;
  }, otherThan);
  return page.locator("#state").evaluate((shown) => ({ slot: shown.dataset.slot, pid: shown.dataset.pid }));
}

async function say(page, text) {
  await page.fill("#text", text);
  await page.press("#text", "Enter");
}

const hears = (page, text) => page.locator("#log .said .text", { hasText: text }).waitFor();
// Exactly once; whoever had to connect again is there twice, until the ping of the lost session
// is missed: at most 45 seconds, what python-engineio waits.
const shows = (page, slot, pid, name) => page.waitForFunction(([slot, pid, name]) => {
  const card = document.querySelector(`.worker[data-slot="${slot}"]`);
  const served = card?.querySelector(".pid")?.textContent.includes(`pid ${pid}`);
  return served && [...card.querySelectorAll("li")].filter((li) => li.textContent === name).length === 1;
}, [slot, pid, name], { timeout: 60_000 });

try {
  const answer = { problems };
  const plain = await open(`http://127.0.0.1:${port}/`);
  answer.plain = await connected(plain);
  await plain.context().close();

  const anna = await open(`http://anna.localhost:${port}/`);
  answer.anna = await connected(anna);
  // Where a name leads nobody can tell from outside: try some until one has another worker.
  let bert;
  for (let number = 0; number < 30; number++) {
    const name = `bert${number}`;
    bert = await open(`http://${name}.localhost:${port}/`);
    answer.bert = { ...await connected(bert), name };
    if (answer.bert.slot !== answer.anna.slot) break;
    await bert.context().close();
  }

  await shows(anna, answer.bert.slot, answer.bert.pid, answer.bert.name);
  await shows(bert, answer.anna.slot, answer.anna.pid, "anna");
  await say(anna, "hello bert");
  await hears(bert, "hello bert");
  await say(bert, "hello anna");
  await hears(anna, "hello anna");
  await bert.click("#robots");
  await anna.waitForFunction(() => document.querySelectorAll(".users .robot").length >= 3);
  // Of all workers together, each of which knows its own clients.
  await anna.waitForFunction(
    () => parseInt(document.querySelector("#participants").textContent) >= 5,
  );
  await anna.waitForFunction(() => document.querySelectorAll(".worker .pid").length === 4);
  await anna.waitForFunction(() => document.querySelectorAll("#log .said").length >= 4);
  await anna.screenshot({ path: screenshot });

  process.kill(Number(answer.anna.pid), "SIGKILL");
  await anna.locator("#log .bad").first().waitFor();
  await anna.locator(`.worker.dead[data-slot="${answer.anna.slot}"]`).waitFor();
  await anna.screenshot({ path: screenshot.replace(".png", "-killed.png") });
  answer.annaAfter = await connected(anna, answer.anna.pid);
  await shows(bert, answer.annaAfter.slot, answer.annaAfter.pid, "anna");
  await bert.waitForFunction(
    (pid) => ![...document.querySelectorAll(".worker .pid")].some((shown) => shown.textContent.includes(pid)),
    answer.anna.pid,
  );
  await say(anna, "I am back");
  await hears(bert, "I am back");
  await say(bert, "so you are");
  await hears(anna, "so you are");
  answer.bertAfter = await connected(bert);
  await bert.emulateMedia({ colorScheme: "dark" });
  await bert.screenshot({ path: screenshot.replace(".png", "-back.png") });
  await bert.setViewportSize({ width: 400, height: 780 });
  await bert.screenshot({ path: screenshot.replace(".png", "-narrow.png"), fullPage: true });
  console.log(JSON.stringify(answer));
} finally {
  await browser.close();
}

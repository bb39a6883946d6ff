// Chromium before one framework's app. Configuration as JSON in argv: name, url, chromium, checks,
// timeout (ms), spread (whether the server gives new clients to several workers), stop (whether the
// first check that fails is the last). Each check answers with one line of JSON: check, ok, and what was seen. To have the
// server reload in the middle it prints {"ask": "reload"}, and goes on when a line comes.
//
// An app shows "pid 123 count 4" (the process, and a counter of this session), has a button "more"
// that counts, an input for a file, of which it says "got 9 bytes abc.. pid 123", and something
// called "download" that gives "pid 123 count 4" as a file. steps/NAME.mjs says what is different.
import { createHash, randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const { chromium } = createRequire(new URL("../e2e/package.json", import.meta.url))("playwright-core");
const { name, url, chromium: executablePath, checks: wanted, timeout, spread, stop } = JSON.parse(process.argv[2]);
const ARGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run " +
  "--disable-background-networking --disable-component-update --disable-sync").split(" ");
const TELLS = /pid (\d+) count (\d+)/;
const CONTEXTS = 6;
const TABS = 4;
let agents = 0;

const steps = {
  path: "/",
  comesBack: false, // on a reload its websocket ends, as all of Engine.IO do, and it opens another
  ignored: /favicon|\.map$/, // failures of requests that do not matter
  ready: (page) => page.getByText(TELLS).first().waitFor(),
  text: (page) => page.getByText(TELLS).first().textContent(),
  more: (page) => page.getByRole("button", { name: "more" }).click(),
  choose: (page, file) => page.locator("input[type=file]").first().setInputFiles(file),
  got: async (page, digest) => {
    const shown = page.getByText(new RegExp(`got \\d+ bytes ${digest} pid \\d+`)).first();
    await shown.waitFor();
    return shown.textContent();
  },
  download: async (page) => {
    const [download] = await Promise.all([
      page.waitForEvent("download"),
      page.getByText("download", { exact: true }).first().click(),
    ]);
    return readFile(await download.path(), "utf8");
  },
  ...(await import(`./steps/${name}.mjs`)).default,
};

const browser = await chromium.launch({ executablePath, args: ARGS });
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (what) => console.log(JSON.stringify(what));

function expect(condition, what) {
  if (!condition) throw new Error(what);
}

async function until(look, what) {
  const end = Date.now() + timeout;
  for (;;) {
    const found = await look();
    if (found) return found;
    expect(Date.now() < end, `never: ${what()}`);
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
}

// One page, and what goes wrong on it.
class Tab {
  problems = [];
  sockets = new Set();
  opened = 0; // websockets
  known = null; // what the app said last

  static async in(context) {
    const tab = new Tab();
    tab.page = await context.newPage();
    tab.page.setDefaultTimeout(timeout);
    tab.page.setDefaultNavigationTimeout(60_000); // however slow the server: that is no failure
    tab.watch();
    return tab;
  }

  watch() {
    const { page } = this;
    const wrong = (what) => steps.ignored.test(what) || this.problems.push(what.slice(0, 300));
    page.on("pageerror", (error) => wrong(`${error}`));
    page.on("response", (response) => {
      if (response.status() >= 400) wrong(`${response.status()} ${response.request().method()} ${response.url()}`);
      if (/event-stream/.test(response.headers()["content-type"] ?? "")) this.sockets.add("SSE");
    });
    page.on("websocket", (socket) => {
      this.opened++;
      socket.on("socketerror", (error) => wrong(`websocket ${socket.url()}: ${error}`));
      socket.on("framereceived", () => this.sockets.add("websocket"));
    });
  }

  async open() {
    await this.page.goto(url + steps.path);
    await steps.ready(this.page);
    return this;
  }

  // Load the page again: that may begin another session.
  async again() {
    this.known = null;
    await this.page.reload();
    await steps.ready(this.page);
  }

  async state() {
    const [, pid, count] = TELLS.exec(await steps.text(this.page));
    return { pid: Number(pid), count: Number(count) };
  }

  // Count once more: what the app says then has to follow what it said before.
  async more() {
    const before = this.known ?? await this.state();
    await steps.more(this.page);
    let now = before;
    await until(async () => (now = await this.state()).count !== before.count || now.pid !== before.pid,
      () => `the app answers "more" (it says pid ${now.pid} count ${now.count}; ${this.problems})`);
    expect(now.count === before.count + 1 && now.pid === before.pid,
      `${JSON.stringify(before)} became ${JSON.stringify(now)}`);
    return (this.known = now);
  }

  async upload() {
    const { pid } = await this.state();
    const buffer = randomBytes(200_000);
    const digest = createHash("sha256").update(buffer).digest("hex").slice(0, 12);
    await steps.choose(this.page, { name: `${digest}.bin`, mimeType: "application/octet-stream", buffer });
    const said = await steps.got(this.page, digest);
    expect(said.includes("got 200000 bytes") && said.includes(`pid ${pid}`), `pid ${pid}: ${said}`);
  }

  async download() {
    const { pid, count } = await this.state();
    const text = await steps.download(this.page);
    expect(text.includes(`pid ${pid} count ${count}`), `pid ${pid} count ${count}: ${text.slice(0, 200)}`);
  }

  clean() {
    expect(!this.problems.length, this.problems.slice(0, 5).join("; "));
  }
}

// Browsers of one address, which differ in what they call themselves.
async function inContexts(count, work) {
  const contexts = await Promise.all(Array.from({ length: count }, () =>
    browser.newContext({ userAgent: `Mozilla/5.0 (X11; Linux x86_64) Chrome Browser/${++agents}` })));
  try {
    return await work(...contexts);
  } finally {
    await Promise.all(contexts.map((context) => context.close()));
  }
}

const inOneTab = (work) => inContexts(1, async (context) => {
  const tab = await Tab.in(context);
  try {
    await tab.open();
    const seen = await work(tab);
    tab.clean();
    return seen;
  } catch (error) {
    error.message += ` [${tab.problems.slice(0, 5).join("; ")}]`;
    throw error;
  }
});

async function openAll(tabs) {
  await Promise.all(tabs.map((tab) => tab.open()));
  await Promise.all(tabs.map((tab) => tab.more()));
  const states = await Promise.all(tabs.map((tab) => tab.more()));
  tabs.forEach((tab) => tab.clean());
  return new Set(states.map((state) => state.pid));
}

const checks = {
  page: () => inOneTab(async (tab) => {
    for (let time = 0; time < 3; time++) await tab.more();
    await tab.again();
    await tab.more();
  }),

  socket: () => inOneTab(async (tab) => {
    await tab.more();
    expect(tab.sockets.size, "neither a websocket nor a stream");
    return [...tab.sockets].join(", ");
  }),

  // The page's websocket breaks: it comes back to what it had.
  reconnect: () => inContexts(1, async (context) => {
    const sockets = [];
    await context.routeWebSocket(/./, (socket) => {
      sockets.push(socket);
      socket.connectToServer();
    });
    const tab = await Tab.in(context);
    await tab.open();
    await tab.more();
    for (let time = 0; time < 4; time++) {
      const opened = sockets.length;
      for (const socket of sockets.splice(0)) await socket.close({ code: 4000, reason: "broken" });
      await until(() => sockets.length, () => `a websocket instead of the ${opened} that broke`);
      await steps.ready(tab.page);
      await tab.more();
    }
    tab.clean();
  }),

  upload: () => inOneTab(async (tab) => {
    await tab.more();
    await tab.upload();
    await tab.upload();
  }),

  download: () => inOneTab(async (tab) => {
    await tab.more();
    await tab.download();
    await tab.more();
    await tab.download();
  }),

  tabs: () => inContexts(1, async (context) => {
    const tabs = await Promise.all(Array.from({ length: TABS }, () => Tab.in(context)));
    return `${(await openAll(tabs)).size} processes`;
  }),

  contexts: () => inContexts(CONTEXTS, async (...contexts) => {
    const tabs = await Promise.all(contexts.map((context) => Tab.in(context)));
    const pids = await openAll(tabs);
    if (wanted.includes("download")) await Promise.all(tabs.map((tab) => tab.download()));
    expect(pids.size > 1 || !spread, "all of them are in one process");
    return `${pids.size} processes`;
  }),

  // Pages that are open go on, with what they have; new ones come to the new processes.
  reload: () => inContexts(3, async (first, second, third) => {
    const tabs = [await Tab.in(first), await Tab.in(second)];
    const before = await openAll(tabs);
    const opened = tabs.map((tab) => tab.opened);
    say({ ask: "reload" });
    const pids = JSON.parse((await answers.next()).value);
    for (const [at, tab] of tabs.entries()) {
      if (steps.comesBack) {
        await until(() => tab.opened > opened[at], () => "it comes back");
        await steps.ready(tab.page);
      }
      await tab.more();
      if (wanted.includes("upload")) await tab.upload();
      if (wanted.includes("download")) await tab.download();
      await tab.more();
      tab.clean();
    }
    const fresh = await openAll([await Tab.in(third)]);
    for (const pid of before) expect(!pids.includes(pid), `${pid} is none of those before`);
    for (const pid of fresh) expect(pids.includes(pid), `a new page is in ${pid}, which is none of ${pids}`);
    await tabs[0].again();
    await tabs[0].more();
  }),
};

try {
  for (const check of wanted) {
    try {
      say({ check, ok: true, seen: (await checks[check]()) ?? "" });
    } catch (error) {
      say({ check, ok: false, seen: `${error.message}`.slice(0, 1500) });
      if (stop) break;
    }
  }
} finally {
  await browser.close();
}
process.exit(0);

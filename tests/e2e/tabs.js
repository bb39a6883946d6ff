// Several tabs of one browser, which share its connections. Configuration as JSON in argv: port,
// chromium, count. Answer: one line of JSON, what each of them saw.
import { chromium } from "playwright-core";

const { port, chromium: executablePath, count } = JSON.parse(process.argv[2]);
const ARGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run " +
  "--disable-background-networking --disable-component-update --disable-sync").split(" ");

const browser = await chromium.launch({ executablePath, args: ARGS });
try {
  const context = await browser.newContext();
  const failed = [];
  context.on("response", (response) => {
    if (response.status() >= 400) failed.push(`${response.status()} ${response.url()}`);
  });
  const tabs = await Promise.all(Array.from({ length: count }, () => context.newPage()));
  await Promise.all(tabs.map((tab) => tab.goto(`http://127.0.0.1:${port}/`)));
  for (const tab of tabs)
    await tab.waitForFunction(() => document.documentElement.dataset.echoes === "40", null, { timeout: 60_000 });
  const seen = await Promise.all(tabs.map((tab) => tab.evaluate(() => ({ ...document.documentElement.dataset }))));
  console.log(JSON.stringify({ seen, failed }));
} finally {
  await browser.close();
}
process.exit(0);

const TELLS = /^pid \d+ count \d+$/;
const input = (page) => page.locator("#chat-input");

async function say(page, text) {
  await input(page).click();
  await page.keyboard.type(text);
  await page.keyboard.press("Enter");
}

// A chat: what was said last counts.
export default {
  path: "/chainlit/",
  comesBack: true,
  ready: (page) => page.getByText(TELLS).first().waitFor(),
  text: (page) => page.getByText(TELLS).last().textContent(),
  more: (page) => say(page, "more"),
  choose: async (page, file) => {
    await page.locator("input[type=file]").first().setInputFiles(file);
    await page.getByText(file.name).first().waitFor();
    await say(page, "here");
  },
  download: async (page) => {
    const links = page.locator("a[href*='/file/']");
    const before = await links.count();
    await say(page, "download");
    await links.nth(before).waitFor();
    const href = await links.nth(before).getAttribute("href");
    return page.evaluate(async (href) => (await fetch(href)).text(), href);
  },
};

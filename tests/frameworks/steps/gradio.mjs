export default {
  // A button for a new file comes where the old one was.
  choose: async (page, file) => {
    const again = page.getByLabel("Remove this file").or(page.getByLabel("Clear"));
    if (await again.first().isVisible()) await again.first().click();
    await page.locator("input[type=file]").first().setInputFiles(file);
  },
};

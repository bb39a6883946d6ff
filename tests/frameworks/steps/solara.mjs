export default {
  choose: async (page, { name, buffer }) => {
    const given = await page.evaluateHandle(([name, data]) => {
      const transfer = new DataTransfer();
      const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      transfer.items.add(new File([bytes], name));
      return transfer;
    }, [name, buffer.toString("base64")]);
    await page.locator(".solara-file-drop").dispatchEvent("drop", { dataTransfer: given });
  },
};

import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

export default {
  // It takes what is dropped, and nothing else.
  choose: async (page, { name, buffer }) => {
    const folder = await mkdtemp(join(tmpdir(), "dropped-"));
    try {
      const file = join(folder, name);
      await writeFile(file, buffer);
      const box = await page.locator(".solara-file-drop").boundingBox();
      const protocol = await page.context().newCDPSession(page);
      const data = { items: [], files: [file], dragOperationsMask: 1 };
      for (const type of ["dragEnter", "dragOver", "drop"])
        await protocol.send("Input.dispatchDragEvent", { type, x: box.x + 5, y: box.y + 5, data });
      await page.getByText("got 200000 bytes").or(page.getByText(name)).first().waitFor();
      await page.getByText(new RegExp(`got \\d+ bytes ${name.split(".")[0]}`)).waitFor();
    } finally {
      await rm(folder, { recursive: true });
    }
  },
};

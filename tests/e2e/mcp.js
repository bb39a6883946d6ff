// Clients of the Model Context Protocol: the official package for TypeScript. Configuration as JSON
// in argv: url, sessions, calls. Answers one line of JSON: what each session was told at each call.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const { url, sessions, calls } = JSON.parse(process.argv[2]);

async function one() {
  const client = new Client({ name: "test", version: "1" });
  const transport = new StreamableHTTPClientTransport(new URL(url));
  await client.connect(transport);
  const told = [];
  for (let number = 0; number < calls; number += 1) {
    const answer = await client.callTool({ name: "count", arguments: {} });
    told.push(answer.structuredContent);
  }
  await transport.terminateSession();
  await client.close();
  return told;
}

console.log(JSON.stringify(await Promise.all(Array.from({ length: sessions }, one))));

// The Node client `rsmq`, driven by lines of JSON: an operation and its arguments in, what came of it out.
const RSMQ = require("rsmq");
const readline = require("readline");

const realtime = process.argv[3] === "realtime";
const rsmq = new RSMQ({ host: "127.0.0.1", port: Number(process.argv[2]), realtime });
const lines = readline.createInterface({ input: process.stdin });

const answer = (value) => process.stdout.write(JSON.stringify(value) + "\n");

lines.on("line", async (line) => {
  const { op, ...options } = JSON.parse(line);
  try {
    // What takes no arguments takes none that are empty either.
    const given = Object.keys(options).length ? [options] : [];
    answer({ ok: await rsmq[op + "Async"](...given) });
  } catch (error) {
    answer({ error: error.name + ": " + error.message });
  }
});
lines.on("close", () => rsmq.quit(() => process.exit(0)));

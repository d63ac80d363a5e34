// Prints what AsyncAPI's parser has against the document that is put in: a line each.
const { Parser } = require("@asyncapi/parser");

let text = "";
process.stdin.on("data", (part) => { text += part; });
process.stdin.on("end", async () => {
  const { document, diagnostics } = await new Parser().parse(text);
  for (const { code, path, message } of diagnostics) {
    // That there are newer versions of the specification is no complaint.
    if (code !== "asyncapi-latest-version") {
      console.log(`${path.join("/")}: ${code}: ${message}`);
    }
  }
  if (!document) {
    console.log("it is no document");
  }
});

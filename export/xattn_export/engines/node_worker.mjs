// Runs graphs for `node.py`: a request is a line of JSON and the bytes of its tensors, one after the other; so is a reply.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";

const [folder, name] = process.argv.slice(2);
const ort = createRequire(resolve(folder, "package.json"))(name);
const inBrowser = name === "onnxruntime-web";
if (inBrowser) ort.env.wasm.numThreads = 1;

const arrays = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, int64: BigInt64Array, uint64: BigUint64Array,
  int32: Int32Array, uint32: Uint32Array, int16: Int16Array, uint16: Uint16Array, int8: Int8Array, uint8: Uint8Array,
  bool: Uint8Array,
};
const sessions = new Map();

async function open({ path, external, options: extra }) {
  const options = { executionProviders: [inBrowser ? "wasm" : "cpu"], logSeverityLevel: 4, extra };
  if (inBrowser) options.externalData = external.map((file) => ({ path: file.name, data: readFileSync(file.path) }));
  sessions.set(path, await ort.InferenceSession.create(inBrowser ? readFileSync(path) : path, options));
  return [{}, []];
}

async function run({ path, inputs, outputs }, body) {
  const feeds = {};
  let start = 0;
  for (const { name, type, dims, bytes, words } of inputs) {
    const data = words ?? new arrays[type](new Uint8Array(body.subarray(start, start + bytes)).buffer);
    feeds[name] = new ort.Tensor(type, data, dims);
    start += bytes;
  }
  const found = await sessions.get(path).run(feeds, outputs);
  const parts = outputs.map((output) => (found[output].type === "string" ? Buffer.alloc(0) : raw(found[output].data)));
  const tensors = outputs.map((output, i) => ({
    name: output, type: found[output].type, dims: found[output].dims, bytes: parts[i].length,
    words: found[output].type === "string" ? found[output].data : null,
  }));
  return [{ outputs: tensors }, parts];
}

const raw = (data) => Buffer.from(data.buffer, data.byteOffset, data.byteLength);

async function answer(request, body) {
  try {
    return await (request.inputs ? run(request, body) : open(request));
  } catch (error) {
    return [{ error: String(error?.message ?? error) }, []];
  }
}

let waiting = Buffer.alloc(0);
for await (const chunk of process.stdin) {
  waiting = Buffer.concat([waiting, chunk]);
  for (;;) {
    const end = waiting.indexOf(10);
    if (end < 0) break;
    const request = JSON.parse(waiting.toString("utf8", 0, end));
    const size = (request.inputs ?? []).reduce((sum, input) => sum + input.bytes, 0);
    if (waiting.length < end + 1 + size) break;
    const [head, parts] = await answer(request, waiting.subarray(end + 1, end + 1 + size));
    waiting = waiting.subarray(end + 1 + size);
    process.stdout.write(JSON.stringify(head) + "\n");
    for (const part of parts) process.stdout.write(part);
  }
}

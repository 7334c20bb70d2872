// Captions a picture with onnxruntime-node: node caption.mjs BUNDLE PICTURE.ppm
// npm install onnxruntime-node
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-node";

const [bundle, picture] = process.argv.slice(2);
const bytes = await readFile(picture);
const header = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(bytes.toString("latin1", 0, 64));
if (!header) throw new Error(`${picture}: expected a PPM picture (P6) of 8 bits a colour`);
const [width, height] = [Number(header[1]), Number(header[2])];
const pixels = new Uint8Array(bytes.subarray(header[0].length, header[0].length + width * height * 3));

const session = await ort.InferenceSession.create(`${bundle}/graphs/whole_text.onnx`);
const images = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
const { texts } = await session.run({ images }, ["texts"]);
console.log(texts.data[0]);

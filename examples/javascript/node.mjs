// node node.mjs MODEL.onnx IMAGE...    prints a line of JSON an image
import { readFile } from 'node:fs/promises';
import * as ort from 'onnxruntime-node';
import sharp from 'sharp';
import { load } from './judge.mjs';

const [model, ...images] = process.argv.slice(2);
const judge = await load(ort, await readFile(model));
for (const path of images) {
  // upright, without transparency and colour profile, grey as three channels, 8 bits
  const decoded = sharp(path, { ignoreIcc: true }).rotate().removeAlpha().toColourspace('srgb').raw({ depth: 'uchar' });
  const { data, info } = await decoded.toBuffer({ resolveWithObject: true });
  const { score, verdict } = await judge({ width: info.width, height: info.height, data });
  console.log(JSON.stringify({ path, score, verdict }));
}

// From pixels to score and verdict, in node and in a page alike; ../README.md says what goes in and comes out.
import { canvas } from './canvas.mjs';

export async function load(ort, file) { // onnxruntime-node or onnxruntime-web, and the bytes of the model's file
  const model = metadata(file), session = await ort.InferenceSession.create(file);
  if (model.input !== 'uint8') throw new Error(`the model takes ${model.input}: export it with --input uint8`);
  return async (image) => { // { width, height, data: RGB, 3 bytes a pixel, row by row }
    const { pixels, keep } = canvas(image, model.preprocess), [height, width] = model.canvas;
    const inputs = { image: new ort.Tensor('uint8', pixels, [1, height, width, 3]) };
    if (model.keep) inputs.keep = new ort.Tensor('bool', keep, [1, height, width]);
    const { score, map } = await session.run(inputs);
    return { score: score.data[0], verdict: verdict(score.data[0], model.calibration), map }; // map.dims: [1, h, w]
  };
}

function verdict(score, calibration) {
  const bad = calibration?.image_threshold ?? null, unsure = calibration?.unsure_threshold ?? null;
  if (bad === null) return 'no threshold';
  if (!Number.isFinite(score) || score > bad) return 'bad';
  return unsure !== null && score > unsure ? 'unsure' : 'good';
}

// onnxruntime does not hand a model's metadata to JavaScript; the file is protobuf, and field 14 are they.
function metadata(file) {
  for (const [field, entry] of fields(file)) {
    if (field !== 14) continue;
    const [key, value] = Array.from(fields(entry), ([, text]) => new TextDecoder().decode(text));
    if (key === 'pickglass') return JSON.parse(value);
  }
  throw new Error("'pickglass export' did not write this file");
}

function* fields(bytes) { // [number, bytes] of those that have a length
  let at = 0;
  const number = () => {
    for (let n = 0, unit = 1; ; unit *= 128) {
      const byte = bytes[at++];
      n += (byte & 127) * unit;
      if (byte < 128) return n;
    }
  };
  while (at < bytes.length) {
    const tag = number(), value = number(); // or length
    if ((tag & 7) === 2) yield [tag >> 3, bytes.subarray(at, (at += value))];
  }
}

// An image on the model's canvas, bit by bit as pickglass puts it there: resized as Pillow resizes, in 8 bits.

export function canvas({ width, height, data }, { size: [H, W], interpolation, geometry, side }) {
  let [h, w] = [H, W]; // geometry 'squeeze'; the others scale the image as a whole
  if (geometry !== 'squeeze') {
    const fits = Math.min(H / height, W / width);
    const scale = { letterbox: fits, shorter: side / Math.min(height, width), native: 1 }[geometry];
    [h, w] = [height, width].map((length) => Math.max(1, halfToEven(length * scale)));
    if (geometry === 'letterbox') [h, w] = [Math.min(h, H), Math.min(w, W)];
    if (h > H || w > W) throw new Error(`${height} x ${width} pixels: they do not fit on the canvas of ${H} x ${W}`);
  }
  const across = resize(data, height, width, w, 3, interpolation); // along each row, then along each column
  const inside = resize(across, 1, height, h, w * 3, interpolation), top = (H - h) >> 1, left = (W - w) >> 1;
  const pixels = new Uint8Array(H * W * 3), keep = new Uint8Array(H * W);
  for (let y = 0; y < H; y++) {
    for (let x = 0; x < W; x++) { // around the image its edge pixels are repeated; there nothing is judged
      const row = within(y - top, h), column = within(x - left, w), from = (row * w + column) * 3;
      pixels.set(inside.subarray(from, from + 3), (y * W + x) * 3);
      keep[y * W + x] = row === y - top && column === x - left ? 1 : 0;
    }
  }
  return { pixels, keep }; // (H, W, 3) and (H, W)
}

const within = (i, n) => Math.min(Math.max(i, 0), n - 1);
const halfToEven = (x) => Math.round(x) - (x % 2 === 0.5 ? 1 : 0); // as Python rounds

// (outer, from, inner) -> (outer, to, inner): antialiased, with weights of 22 bits behind the point
function resize(source, outer, from, to, inner, interpolation) {
  const linear = (x) => Math.max(0, 1 - x);
  const cubic = (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((2.5 - 0.5 * x) * x - 4) * x + 2 : 0);
  const [kernel, radius] = interpolation === 'bicubic' ? [cubic, 2] : [linear, 1];
  const step = from / to, stretch = Math.max(step, 1), reach = radius * stretch;
  const out = new Uint8ClampedArray(outer * to * inner);
  for (let x = 0; x < to; x++) {
    const centre = (x + 0.5) * step, first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const count = Math.min(from, Math.trunc(centre + reach + 0.5)) - first;
    const share = (_, i) => kernel(Math.abs((i + first - centre + 0.5) * (1 / stretch)));
    const shares = Array.from({ length: count }, share), sum = shares.reduce((a, b) => a + b);
    const weights = shares.map((value) => Math.round((value / sum) * 2 ** 22));
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < inner; i++) {
        let total = 2 ** 21; // a half, so that the shift rounds
        for (let k = 0; k < count; k++) total += weights[k] * source[(o * from + first + k) * inner + i];
        out[(o * to + x) * inner + i] = total >> 22;
      }
    }
  }
  return out;
}

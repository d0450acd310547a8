// An image on the model's canvas, bit by bit as pickglass puts it there: resized as Pillow resizes, in 8 bits.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

using Bytes = std::vector<uint8_t>;
struct Image { int height, width; Bytes rgb; };            // row by row, 3 bytes a pixel
struct Preprocess { int H, W; std::string geometry; double side; bool cubic; };  // of the metadata; H x W is the canvas
struct Canvas { Bytes pixels, keep; };                      // (H, W, 3) and (H, W)

// (outer, from, inner) -> (outer, to, inner): antialiased, with weights of 22 bits behind the point
inline Bytes resize(const Bytes& source, int outer, int from, int to, int inner, bool cubic) {
  auto kernel = [cubic](double x) {
    if (!cubic) return std::max(0.0, 1 - x);
    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((2.5 - 0.5 * x) * x - 4) * x + 2 : 0.0;
  };
  const double step = double(from) / to, stretch = std::max(step, 1.0), reach = stretch * (cubic ? 2 : 1);
  Bytes out(size_t(outer) * to * inner);
  for (int x = 0; x < to; ++x) {
    const double centre = (x + 0.5) * step;
    const int first = std::max(0, int(centre - reach + 0.5)), count = std::min(from, int(centre + reach + 0.5)) - first;
    std::vector<double> weights(count);
    double sum = 0;
    for (int k = 0; k < count; ++k) sum += weights[k] = kernel(std::abs((k + first - centre + 0.5) * (1 / stretch)));
    for (double& weight : weights) weight = std::round(weight / sum * (1 << 22));
    for (int o = 0; o < outer; ++o)
      for (int i = 0; i < inner; ++i) {
        double total = 1 << 21;  // a half, so that the shift rounds
        for (int k = 0; k < count; ++k) total += weights[k] * source[(size_t(o) * from + first + k) * inner + i];
        out[(size_t(o) * to + x) * inner + i] = uint8_t(std::clamp(int(total) >> 22, 0, 255));
      }
  }
  return out;
}
inline Canvas canvas(const Image& image, const Preprocess& model) {
  const int H = model.H, W = model.W, height = image.height, width = image.width;
  int h = H, w = W;  // geometry "squeeze"; the others scale the image as a whole
  if (model.geometry != "squeeze") {
    double scale = model.geometry == "letterbox" ? std::min(double(H) / height, double(W) / width) : 1;
    if (model.geometry == "shorter") scale = model.side / std::min(height, width);
    h = std::max(1, int(std::nearbyint(height * scale))), w = std::max(1, int(std::nearbyint(width * scale)));
    if (model.geometry == "letterbox") h = std::min(h, H), w = std::min(w, W);
    if (h > H || w > W) throw std::runtime_error("the image does not fit on the model's canvas");
  }
  const Bytes across = resize(image.rgb, height, width, w, 3, model.cubic);  // along each row, then along each column
  const Bytes inside = resize(across, 1, height, h, w * 3, model.cubic);
  Canvas out{Bytes(size_t(H) * W * 3), Bytes(size_t(H) * W)};
  for (int y = 0; y < H; ++y)
    for (int x = 0; x < W; ++x) {  // around the image its edge pixels are repeated; there nothing is judged
      const int row = std::clamp(y - (H - h) / 2, 0, h - 1), column = std::clamp(x - (W - w) / 2, 0, w - 1);
      std::copy_n(&inside[(size_t(row) * w + column) * 3], 3, &out.pixels[(size_t(y) * W + x) * 3]);
      out.keep[size_t(y) * W + x] = row == y - (H - h) / 2 && column == x - (W - w) / 2;
    }
  return out;
}

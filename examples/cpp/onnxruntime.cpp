// pickglass-onnxruntime MODEL.onnx IMAGE.png...    prints a line of JSON an image
#include <onnxruntime_cxx_api.h>

#include <array>
#include <iostream>

#include "decode.hpp"
#include "model.hpp"

int main(int argc, char** argv) try {
  if (argc < 3) throw std::runtime_error("usage: pickglass-onnxruntime MODEL.onnx IMAGE.png...");
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "pickglass");
  Ort::Session session(env, argv[1], Ort::SessionOptions{});  // on Windows the path is of wide characters
  Ort::AllocatorWithDefaultOptions allocator;
  const auto metadata = session.GetModelMetadata().LookupCustomMetadataMapAllocated("pickglass", allocator);
  if (!metadata) throw std::runtime_error("'pickglass export' did not write this file");
  const Model model(metadata.get());
  const std::array<int64_t, 4> shape{1, model.preprocess.H, model.preprocess.W, 3};  // of image; keep has no 3
  const std::array<const char*, 2> inputs{"image", "keep"}, outputs{"score", "map"};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  for (int i = 2; i < argc; ++i) {
    Canvas on = canvas(decode(argv[i]), model.preprocess);
    bool* keep = reinterpret_cast<bool*>(on.keep.data());
    std::array<Ort::Value, 2> given{
        Ort::Value::CreateTensor<uint8_t>(memory, on.pixels.data(), on.pixels.size(), shape.data(), 4),
        Ort::Value::CreateTensor<bool>(memory, keep, on.keep.size(), shape.data(), 3)};
    const auto found = session.Run({}, inputs.data(), given.data(), model.keep ? 2 : 1, outputs.data(), outputs.size());
    const float score = *found[0].GetTensorData<float>();  // found[1] is the map, (1, h, w)
    std::cout << nlohmann::json{{"path", argv[i]}, {"score", score}, {"verdict", model.verdict(score)}} << std::endl;
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << std::endl;
  return 2;
}

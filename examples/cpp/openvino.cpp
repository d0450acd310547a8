// pickglass-openvino MODEL.onnx IMAGE.png...    prints a line of JSON an image
#include <iostream>
#include <openvino/openvino.hpp>

#include "decode.hpp"
#include "model.hpp"

int main(int argc, char** argv) try {
  if (argc < 3) throw std::runtime_error("usage: pickglass-openvino MODEL.onnx IMAGE.png...");
  ov::Core core;
  const auto network = core.read_model(argv[1]);
  if (!network->has_rt_info("framework", "pickglass"))
    throw std::runtime_error("'pickglass export' did not write this file");
  const Model model(network->get_rt_info<std::string>("framework", "pickglass"));
  auto compiled = core.compile_model(network, "CPU", ov::hint::inference_precision(ov::element::f32));
  auto request = compiled.create_infer_request();
  const size_t H = model.preprocess.H, W = model.preprocess.W;
  for (int i = 2; i < argc; ++i) {
    Canvas on = canvas(decode(argv[i]), model.preprocess);
    request.set_tensor("image", ov::Tensor(ov::element::u8, {1, H, W, 3}, on.pixels.data()));
    if (model.keep) request.set_tensor("keep", ov::Tensor(ov::element::boolean, {1, H, W}, on.keep.data()));
    request.infer();
    const float score = *request.get_tensor("score").data<float>();  // "map" is (1, h, w)
    std::cout << nlohmann::json{{"path", argv[i]}, {"score", score}, {"verdict", model.verdict(score)}} << std::endl;
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << std::endl;
  return 2;
}

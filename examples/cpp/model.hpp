// What `pickglass export` writes into a file's metadata, and the verdict that follows from it and a score.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>

#include "canvas.hpp"

struct Model {
  Preprocess preprocess;
  bool keep;                          // it takes the input keep
  std::optional<double> bad, unsure;  // thresholds

  explicit Model(const std::string& metadata) {
    const auto model = nlohmann::json::parse(metadata);
    if (model.at("input") != "uint8") throw std::runtime_error("export the model with --input uint8");
    const auto& how = model.at("preprocess");
    const double side = how["side"].is_null() ? 0 : how["side"].get<double>();
    preprocess = {how["size"][0], how["size"][1], how["geometry"], side, how["interpolation"] == "bicubic"};
    keep = model.at("keep");
    for (const auto& [name, value] : model.at("calibration").items()) {
      if (name == "image_threshold" && value.is_number()) bad = value.get<double>();
      if (name == "unsure_threshold" && value.is_number()) unsure = value.get<double>();
    }
  }

  std::string verdict(float score) const {
    if (!bad) return "no threshold";
    if (!std::isfinite(score) || score > *bad) return "bad";
    return unsure && score > *unsure ? "unsure" : "good";
  }
};

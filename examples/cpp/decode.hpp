// A PNG file as RGB of 8 bits, by libpng. Other formats: put your decoder, or the frame of your camera, here.
#pragma once
#include <png.h>

#include "canvas.hpp"

inline Image decode(const std::string& path) {
  png_image file{};
  file.version = PNG_IMAGE_VERSION;
  if (!png_image_begin_read_from_file(&file, path.c_str())) throw std::runtime_error(path + ": " + file.message);
  file.flags |= PNG_IMAGE_FLAG_16BIT_sRGB;
  file.format = PNG_FORMAT_RGBA;  // what lies under transparent pixels counts
  Bytes rgba(PNG_IMAGE_SIZE(file));
  if (!png_image_finish_read(&file, nullptr, rgba.data(), 0, nullptr))
    throw std::runtime_error(path + ": " + file.message);
  Image image{int(file.height), int(file.width), Bytes(rgba.size() / 4 * 3)};
  for (size_t i = 0; i < image.rgb.size(); ++i) image.rgb[i] = rgba[i / 3 * 4 + i % 3];
  return image;
}

// SPDX-License-Identifier: Apache-2.0
// A photograph as the model wants it: resized with Pillow's bicubic filter, its centre cut out,
// normalised. No library is needed; photographs are binary PPM files (`convert a.jpg a.ppm`).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace stormrt {

//! RGB, 8 bits a channel, rows from the top, channels beside each other.
struct Image {
    int height = 0;
    int width = 0;
    std::vector<std::uint8_t> pixels;
};

//! How a photograph becomes the model's input.
struct Preprocessing {
    int height;          //!< of the input, in pixels
    int width;           //!< of the input, in pixels
    float mean[3];       //!< of each channel, RGB in [0, 1]
    float deviation[3];  //!< of each channel
    double resizeRatio;  //!< the resized photograph's side over the input's
};

//! Reads a binary PPM (P6, 8 bits). Throws std::runtime_error where the file is none.
inline Image readPpm(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::runtime_error(path + ": cannot be read");
    }
    std::string magic;
    file >> magic;
    int fields[3] = {0, 0, 0};  // width, height, largest value
    for (int& field : fields) {
        while ((file >> std::ws).peek() == '#') {
            file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
        }
        file >> field;
    }
    int const largestSide = 1 << 15;
    bool const isSane = file && magic == "P6" && fields[2] == 255 && fields[0] > 0 &&
                        fields[1] > 0 && fields[0] <= largestSide && fields[1] <= largestSide;
    if (!isSane) {
        throw std::runtime_error(path + ": is no binary PPM (P6) with 8 bits a channel");
    }
    file.get();  // exactly one white-space byte ends the header
    Image image{fields[1], fields[0], {}};
    image.pixels.resize(static_cast<std::size_t>(image.height) * image.width * 3);
    file.read(reinterpret_cast<char*>(image.pixels.data()),
              static_cast<std::streamsize>(image.pixels.size()));
    if (file.gcount() != static_cast<std::streamsize>(image.pixels.size())) {
        throw std::runtime_error(path + ": ends before its last pixel");
    }
    return image;
}

namespace detail {

//! The cubic of R. Keys, 1981, with a = -0.5, which Pillow's BICUBIC is.
inline double cubic(double x) {
    double const a = -0.5;
    x = std::abs(x);
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    }
    return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * a : 0.0;
}

//! Resizes one axis: `lines` lines of `from` samples, `step` apart, become lines of `to` samples.
//! Where it shrinks, the filter is as much wider, so that every pixel counts.
inline std::vector<std::uint8_t> resizeAxis(std::vector<std::uint8_t> const& in, int height,
                                            int width, bool rows, int to) {
    int const from = rows ? height : width;
    int const other = rows ? width : height;
    double const scale = static_cast<double>(from) / to;
    double const stretch = std::max(scale, 1.0);
    double const support = 2.0 * stretch;
    std::vector<std::uint8_t> out(static_cast<std::size_t>(to) * other * 3);
    auto const at = [rows](int line, int sample, int samples, int lines) {
        return rows ? (static_cast<std::size_t>(sample) * lines + line) * 3
                    : (static_cast<std::size_t>(line) * samples + sample) * 3;
    };
    std::vector<double> weights;
    for (int i = 0; i < to; ++i) {
        double const centre = (i + 0.5) * scale;
        int const first = std::max(0, static_cast<int>(centre - support + 0.5));
        int const last = std::min(from, static_cast<int>(centre + support + 0.5));
        weights.clear();
        double sum = 0.0;
        for (int k = first; k < last; ++k) {
            weights.push_back(cubic((k - centre + 0.5) / stretch));
            sum += weights.back();
        }
        for (int line = 0; line < other; ++line) {
            for (int channel = 0; channel < 3; ++channel) {
                double value = 0.0;
                for (int k = first; k < last; ++k) {
                    value += weights[k - first] * in[at(line, k, from, other) + channel];
                }
                double const rounded = std::floor(value / sum + 0.5);
                out[at(line, i, to, other) + channel] =
                    static_cast<std::uint8_t>(std::clamp(rounded, 0.0, 255.0));
            }
        }
    }
    return out;
}

}  // namespace detail

//! Resizes as Pillow's BICUBIC does: columns first, then rows, 8 bits between them.
inline Image resize(Image const& image, int height, int width) {
    Image out{height, width, image.pixels};
    if (width != image.width) {
        out.pixels = detail::resizeAxis(out.pixels, image.height, image.width, false, width);
    }
    if (height != image.height) {
        out.pixels = detail::resizeAxis(out.pixels, image.height, width, true, height);
    }
    return out;
}

//! A photograph -> [3, H, W], FP32.
inline std::vector<float> preprocess(Image const& image, Preprocessing const& how) {
    double const scale = std::max(how.height * how.resizeRatio / image.height,
                                  how.width * how.resizeRatio / image.width);
    // nearbyint rounds halves to even, as Python does.
    int const height = std::max(how.height, static_cast<int>(std::nearbyint(image.height * scale)));
    int const width = std::max(how.width, static_cast<int>(std::nearbyint(image.width * scale)));
    Image const resized = resize(image, height, width);
    int const top = (height - how.height) / 2;
    int const left = (width - how.width) / 2;
    std::vector<float> input(static_cast<std::size_t>(3) * how.height * how.width);
    std::size_t next = 0;
    for (int channel = 0; channel < 3; ++channel) {
        for (int y = 0; y < how.height; ++y) {
            for (int x = 0; x < how.width; ++x) {
                std::size_t const at =
                    (static_cast<std::size_t>(top + y) * width + left + x) * 3 + channel;
                float const pixel = resized.pixels[at] / 255.0f;
                input[next++] = (pixel - how.mean[channel]) / how.deviation[channel];
            }
        }
    }
    return input;
}

}  // namespace stormrt

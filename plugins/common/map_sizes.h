// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace stormrt {

//! Sizes of an operator that makes a map [batch, channels, out_height, out_width] from a map
//! [batch, channels, height, width].
struct MapSizes {
    int32_t batch;
    int32_t channels;
    int32_t height;
    int32_t width;
    int32_t out_height;
    int32_t out_width;
};

}  // namespace stormrt

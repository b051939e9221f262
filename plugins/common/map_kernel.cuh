// SPDX-License-Identifier: Apache-2.0
// How the kernels that make one map from another share out their work: a thread makes the same one
// or two neighbouring positions in several channels. What it must know about its position (indices,
// weights) it finds out once, and the channels are independent loads, all under way at a time. Two
// values of FP16 a thread make a warp's store one line of 128 bytes, and keep its loads, which
// follow the lines that were kept, within two or three.
#pragma once

#include <cuda_runtime_api.h>

#include <climits>
#include <cstddef>

#include "common/map_sizes.h"

namespace stormrt {

constexpr int kMapThreads = 128;
constexpr int kMapChannels = 8;  //!< of a thread
//! Blocks that should fit a multiprocessor. With no such aim, the compiler saves registers by
//! having later loads wait for earlier ones.
constexpr int kMapBlocks = 8;
constexpr unsigned kMaxGridHeight = 65535;

template <typename T, int kVector>
struct alignas(kVector * sizeof(T)) Vector {
    T values[kVector];
};

//! What a thread makes: kVector outputs from (row, column) on, in kMapChannels channels.
struct MapPlace {
    int first_channel;  //!< not below MapSizes::channels where there is nothing to do
    int row;
    int column;
};

template <int kVector>
__device__ __forceinline__ MapPlace mapPlace(MapSizes const& sizes) {
    unsigned const index = blockIdx.x * kMapThreads + threadIdx.x;
    unsigned const columns = sizes.out_width / kVector;
    unsigned const positions = sizes.out_height * columns;
    unsigned const group = index / positions;
    unsigned const position = index - group * positions;
    unsigned const row = position / columns;
    return {static_cast<int>(group * kMapChannels), static_cast<int>(row),
            static_cast<int>((position - row * columns) * kVector)};
}

__device__ __forceinline__ int clampTo(int value, int low, int high) {
    return min(max(value, low), high);
}

//! Images are the grid's rows, in as many layers as rows are too many for one.
template <int kVector>
dim3 mapGrid(MapSizes const& sizes) {
    unsigned const groups = (sizes.channels + kMapChannels - 1) / kMapChannels;
    unsigned const threads = groups * sizes.out_height * (sizes.out_width / kVector);
    unsigned const batch = sizes.batch;
    unsigned const layers = (batch + kMaxGridHeight - 1) / kMaxGridHeight;
    return {(threads + kMapThreads - 1) / kMapThreads, (batch + layers - 1) / layers, layers};
}

//! The image of a block; not below MapSizes::batch where there is nothing to do.
__device__ __forceinline__ unsigned mapImage() { return blockIdx.z * gridDim.y + blockIdx.y; }

//! Whether sizes are positive, and a map's positions and an image's threads fit 31 bits.
inline bool isLaunchable(MapSizes const& sizes) {
    for (int const extent : {sizes.batch, sizes.channels, sizes.height, sizes.width,
                             sizes.out_height, sizes.out_width}) {
        if (extent < 1) return false;
    }
    int64_t const positions = static_cast<int64_t>(sizes.out_height) * sizes.out_width;
    int64_t const groups = (static_cast<int64_t>(sizes.channels) + kMapChannels - 1) / kMapChannels;
    return static_cast<int64_t>(sizes.height) * sizes.width <= INT_MAX &&
           positions <= INT_MAX / groups;
}

}  // namespace stormrt

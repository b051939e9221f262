// SPDX-License-Identifier: Apache-2.0
#include "common/line_copy.h"
#include "common/map_kernel.cuh"

namespace stormrt {
namespace {

//! Loads are plain, and not through __ldg: then no store may overtake them, and all of them are
//! under way before the first value is waited for.
template <int kChannels, typename T, int kVector>
__device__ __forceinline__ void copyChannels(T const* from, unsigned map,
                                             int const (&offsets)[kVector], T* to,
                                             unsigned out_map) {
    T const* sources[kVector];
#pragma unroll
    for (int v = 0; v < kVector; ++v) sources[v] = from + offsets[v];
    Vector<T, kVector> values[kChannels];
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
            values[k].values[v] = *sources[v];
            sources[v] += map;
        }
    }
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
        *reinterpret_cast<Vector<T, kVector>*>(to) = values[k];
        to += out_map;
    }
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kMapThreads, kMapBlocks) lineCopy(LineCopy const p) {
    MapSizes const& sizes = p.sizes;
    MapPlace const place = mapPlace<kVector>(sizes);
    unsigned const image = mapImage();
    unsigned const batch = sizes.batch;
    if (place.first_channel >= sizes.channels || image >= batch) return;
    unsigned const map = sizes.height * sizes.width;
    unsigned const out_map = sizes.out_height * sizes.out_width;
    size_t const b = image;
    int const row = clampTo(__ldg(p.rows + b * sizes.out_height + place.row), 0, sizes.height - 1);
    int offsets[kVector];
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
        int const col = __ldg(p.cols + b * sizes.out_width + place.column + v);
        offsets[v] = row * sizes.width + clampTo(col, 0, sizes.width - 1);
    }
    size_t const first_plane = b * sizes.channels + place.first_channel;
    T const* const from = static_cast<T const*>(p.x) + first_plane * map;
    T* const to =
        static_cast<T*>(p.y) + first_plane * out_map + place.row * sizes.out_width + place.column;
    int const count = sizes.channels - place.first_channel;
    if (count >= kMapChannels) {
        copyChannels<kMapChannels>(from, map, offsets, to, out_map);
    } else {
#pragma unroll 1
        for (int k = 0; k < count; ++k) {
            size_t const plane = k;
            copyChannels<1>(from + plane * map, map, offsets, to + plane * out_map, out_map);
        }
    }
}

template <typename T, int kVector>
cudaError_t launchAs(LineCopy const& copy, cudaStream_t stream) {
    lineCopy<T, kVector><<<mapGrid<kVector>(copy.sizes), kMapThreads, 0, stream>>>(copy);
    return cudaGetLastError();
}

template <typename T>
cudaError_t launchVector(LineCopy const& copy, cudaStream_t stream) {
    return copy.sizes.out_width % 2 == 0 ? launchAs<T, 2>(copy, stream)
                                         : launchAs<T, 1>(copy, stream);
}

}  // namespace

cudaError_t launchLineCopy(LineCopy const& copy, cudaStream_t stream) noexcept {
    if (!isLaunchable(copy.sizes)) return cudaErrorInvalidValue;
    // Values are moved, never computed with: only their size matters.
    if (copy.element_size == 2) return launchVector<uint16_t>(copy, stream);
    if (copy.element_size == 4) return launchVector<uint32_t>(copy, stream);
    return cudaErrorInvalidValue;
}

}  // namespace stormrt

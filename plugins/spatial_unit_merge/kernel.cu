// SPDX-License-Identifier: Apache-2.0
// SpatialUnitMerge: every value is read once, by the thread whose cell it is in. The sums are FP32
// and go row by row, so that results are the same bits each time. Weights become shares of their
// cell's total before they are used: a line alone in its cell has the share 1, exactly, and its
// values pass unchanged, whatever its weight.

#include <cuda_fp16.h>

#include "common/map_kernel.cuh"
#include "spatial_unit_merge/kernel.h"

namespace stormrt::spatial_unit_merge {
namespace {

__device__ __forceinline__ float toFloat(float value) { return value; }
__device__ __forceinline__ float toFloat(__half value) { return __half2float(value); }

__device__ __forceinline__ void fromFloat(float value, float& out) { out = value; }
__device__ __forceinline__ void fromFloat(float value, __half& out) {
    out = __float2half_rn(value);
}

//! Lines [begin, end) of one side of the map, and the sum of their weights: above 0, or no lines.
struct Cell {
    int begin;
    int end;
    float weight;
    float inverse;  //!< 1 / weight

    //! The share of a line with a weight. Not a division, whose rare cases cost registers; but
    //! exactly 1 where the division would give 1.
    __device__ __forceinline__ float share(float line_weight) const {
        return line_weight == weight ? 1.0f : line_weight * inverse;
    }
};

__device__ __forceinline__ Cell cellOf(int index, int32_t const* starts, int count,
                                       float const* weights, int lines) {
    Cell cell{clampTo(__ldg(starts + index), 0, lines), lines, 0.0f, 0.0f};
    if (index + 1 < count) cell.end = clampTo(__ldg(starts + index + 1), 0, lines);
#pragma unroll 1
    for (int line = cell.begin; line < cell.end; ++line) cell.weight += __ldg(weights + line);
    if (!(cell.weight > 0.0f)) cell.end = cell.begin;
    cell.inverse = __frcp_rn(cell.weight);
    return cell;
}

//! The cells of one thread: kVector of them, side by side.
template <int kVector>
struct Cells {
    Cell rows;
    Cell cols[kVector];
    float const* row_weights;
    float const* col_weights;
};

//! The cells' first columns in all channels, then their second ones, and so on: the loads of one
//! step do not depend on each other.
template <int kChannels, typename T, int kVector>
__device__ __forceinline__ void mergeChannels(T const* from, unsigned map, int width,
                                              Cells<kVector> const& cells, T* to,
                                              unsigned out_map) {
    int widest = 0;
#pragma unroll
    for (int v = 0; v < kVector; ++v) widest = max(widest, cells.cols[v].end - cells.cols[v].begin);
    float sums[kChannels][kVector] = {};
#pragma unroll 1
    for (int row = cells.rows.begin; row < cells.rows.end; ++row) {
        float const row_share = cells.rows.share(__ldg(cells.row_weights + row));
#pragma unroll 1
        for (int step = 0; step < widest; ++step) {
            float shares[kVector];
            bool inside[kVector];
            T const* sources[kVector];
#pragma unroll
            for (int v = 0; v < kVector; ++v) {
                int const col = cells.cols[v].begin + step;
                inside[v] = col < cells.cols[v].end;
                sources[v] = from + (row * width + col);
                shares[v] = 0.0f;
                if (inside[v]) {
                    shares[v] = row_share * cells.cols[v].share(__ldg(cells.col_weights + col));
                }
            }
            T values[kChannels][kVector];
#pragma unroll
            for (int k = 0; k < kChannels; ++k) {
#pragma unroll
                for (int v = 0; v < kVector; ++v) {
                    values[k][v] = inside[v] ? __ldg(sources[v]) : T{};
                    sources[v] += map;
                }
            }
#pragma unroll
            for (int k = 0; k < kChannels; ++k) {
#pragma unroll
                for (int v = 0; v < kVector; ++v) sums[k][v] += shares[v] * toFloat(values[k][v]);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
        Vector<T, kVector> merged;
#pragma unroll
        for (int v = 0; v < kVector; ++v) fromFloat(sums[k][v], merged.values[v]);
        *reinterpret_cast<Vector<T, kVector>*>(to) = merged;
        to += out_map;
    }
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kMapThreads, kMapBlocks) spatialUnitMerge(Params const p) {
    MapSizes const& sizes = p.sizes;
    MapPlace const place = mapPlace<kVector>(sizes);
    unsigned const image = mapImage();
    unsigned const batch = sizes.batch;
    if (place.first_channel >= sizes.channels || image >= batch) return;
    unsigned const map = sizes.height * sizes.width;
    unsigned const out_map = sizes.out_height * sizes.out_width;
    size_t const b = image;
    Cells<kVector> cells;
    cells.row_weights = p.row_weights + b * sizes.height;
    cells.col_weights = p.col_weights + b * sizes.width;
    cells.rows = cellOf(place.row, p.row_starts + b * sizes.out_height, sizes.out_height,
                        cells.row_weights, sizes.height);
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
        cells.cols[v] = cellOf(place.column + v, p.col_starts + b * sizes.out_width,
                               sizes.out_width, cells.col_weights, sizes.width);
    }
    size_t const first_plane = b * sizes.channels + place.first_channel;
    T const* const from = static_cast<T const*>(p.x) + first_plane * map;
    T* const to =
        static_cast<T*>(p.y) + first_plane * out_map + place.row * sizes.out_width + place.column;
    int const count = sizes.channels - place.first_channel;
    if (count >= kMapChannels) {
        mergeChannels<kMapChannels>(from, map, sizes.width, cells, to, out_map);
    } else {
#pragma unroll 1
        for (int k = 0; k < count; ++k) {
            size_t const plane = k;
            mergeChannels<1>(from + plane * map, map, sizes.width, cells, to + plane * out_map,
                             out_map);
        }
    }
}

template <typename T, int kVector>
cudaError_t launchAs(Params const& p, cudaStream_t stream) {
    spatialUnitMerge<T, kVector><<<mapGrid<kVector>(p.sizes), kMapThreads, 0, stream>>>(p);
    return cudaGetLastError();
}

template <typename T>
cudaError_t launchVector(Params const& p, cudaStream_t stream) {
    return p.sizes.out_width % 2 == 0 ? launchAs<T, 2>(p, stream) : launchAs<T, 1>(p, stream);
}

}  // namespace

cudaError_t launch(Params const& p, cudaStream_t stream) noexcept {
    if (!isLaunchable(p.sizes)) return cudaErrorInvalidValue;
    return p.is_half ? launchVector<__half>(p, stream) : launchVector<float>(p, stream);
}

}  // namespace stormrt::spatial_unit_merge

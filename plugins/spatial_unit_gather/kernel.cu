// SPDX-License-Identifier: Apache-2.0
// SpatialUnitGather: a thread gathers the same few positions of a row for several channels, so that
// it reads their indices once. Loads follow the kept columns (neighbours in memory but for the lines
// that left), stores are as wide as the kept width allows.

#include "spatial_unit_gather/kernel.h"

#include <climits>

namespace stormrt::spatial_unit_gather {
namespace {

constexpr int kThreads = 128;
constexpr int kChannels = 8;  //!< of a thread
constexpr int kMaxGridDepth = 65535;

__device__ __forceinline__ int clampTo(int index, int size) {
    return min(max(index, 0), size - 1);
}

template <typename T, int kVector>
struct alignas(kVector * sizeof(T)) Vector {
    T values[kVector];
};

template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads) spatialUnitGather(Params const p) {
    int const columns = p.kept_width / kVector;
    int const position = blockIdx.x * kThreads + threadIdx.x;
    if (position >= p.kept_height * columns) return;
    int const i = position / columns;
    int const j = (position - i * columns) * kVector;
    for (int image = blockIdx.z; image < p.batch; image += gridDim.z) {
        int const row = clampTo(__ldg(p.rows + image * p.kept_height + i), p.height);
        int offsets[kVector];
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
            int const column = __ldg(p.cols + image * p.kept_width + j + v);
            offsets[v] = row * p.width + clampTo(column, p.width);
        }
        int const first = blockIdx.y * kChannels;
        int const last = min(first + kChannels, p.channels);
        for (int channel = first; channel < last; ++channel) {
            int const plane = image * p.channels + channel;
            T const* const from = static_cast<T const*>(p.x) +
                                  static_cast<size_t>(plane) * p.height * p.width;
            T* const to = static_cast<T*>(p.y) +
                          static_cast<size_t>(plane) * p.kept_height * p.kept_width;
            Vector<T, kVector> kept;
#pragma unroll
            for (int v = 0; v < kVector; ++v) kept.values[v] = __ldg(from + offsets[v]);
            *reinterpret_cast<Vector<T, kVector>*>(to + i * p.kept_width + j) = kept;
        }
    }
}

template <typename T, int kVector>
cudaError_t launchAs(Params const& p, cudaStream_t stream) {
    int const positions = p.kept_height * (p.kept_width / kVector);
    dim3 const grid(
        (positions + kThreads - 1) / kThreads, (p.channels + kChannels - 1) / kChannels,
        p.batch < kMaxGridDepth ? p.batch : kMaxGridDepth);
    spatialUnitGather<T, kVector><<<grid, kThreads, 0, stream>>>(p);
    return cudaGetLastError();
}

template <typename T>
cudaError_t launchVector(Params const& p, cudaStream_t stream) {
    constexpr int kWidest = 16 / sizeof(T);
    if (p.kept_width % kWidest == 0) return launchAs<T, kWidest>(p, stream);
    if (p.kept_width % 4 == 0) return launchAs<T, 4>(p, stream);
    if (p.kept_width % 2 == 0) return launchAs<T, 2>(p, stream);
    return launchAs<T, 1>(p, stream);
}

bool isValid(Params const& p) {
    for (int const extent :
         {p.batch, p.channels, p.height, p.width, p.kept_height, p.kept_width}) {
        if (extent < 1) return false;
    }
    // Positions of a map are of 32 bits, planes of the grid of 16.
    if (static_cast<int64_t>(p.height) * p.width > INT_MAX) return false;
    if (static_cast<int64_t>(p.kept_height) * p.kept_width > INT_MAX) return false;
    if (static_cast<int64_t>(p.batch) * p.channels > INT_MAX) return false;
    return (p.channels + kChannels - 1) / kChannels <= kMaxGridDepth;
}

}  // namespace

cudaError_t launch(Params const& p, cudaStream_t stream) noexcept {
    if (!isValid(p)) return cudaErrorInvalidValue;
    // Values are moved, never computed with: only their size matters.
    if (p.element_size == 2) return launchVector<uint16_t>(p, stream);
    if (p.element_size == 4) return launchVector<uint32_t>(p, stream);
    return cudaErrorInvalidValue;
}

}  // namespace stormrt::spatial_unit_gather

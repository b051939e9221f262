// SPDX-License-Identifier: Apache-2.0
// SpatialUnitGather on the GPU: one launch, no allocation, no synchronisation.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace stormrt::spatial_unit_gather {

//! y[b, c, i, j] = x[b, c, rows[b, i], cols[b, j]]; all tensors contiguous in device memory.
struct Params {
    void const* x;        //!< [B, C, H, W], elements of element_size bytes
    int32_t const* rows;  //!< [B, kept_height]
    int32_t const* cols;  //!< [B, kept_width]
    void* y;              //!< [B, C, kept_height, kept_width]
    int32_t batch;
    int32_t channels;
    int32_t height;
    int32_t width;
    int32_t kept_height;
    int32_t kept_width;
    int32_t element_size;  //!< 2 or 4 bytes
};

//! Enqueues the gather. An index outside the map is clamped to it: no read is ever out of bounds.
//! Returns cudaErrorInvalidValue for sizes that are out of range.
cudaError_t launch(Params const& params, cudaStream_t stream) noexcept;

}  // namespace stormrt::spatial_unit_gather

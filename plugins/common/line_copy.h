// SPDX-License-Identifier: Apache-2.0
// The copy of whole lines that both SpatialUnitGather and SpatialUnitScatter are: one launch, no
// allocation, no synchronisation.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/map_sizes.h"

namespace stormrt {

//! y[b, c, i, j] = x[b, c, rows[b, i], cols[b, j]]; all tensors contiguous in device memory.
struct LineCopy {
    void const* x;        //!< [B, C, height, width], elements of element_size bytes
    int32_t const* rows;  //!< [B, out_height]
    int32_t const* cols;  //!< [B, out_width]
    void* y;              //!< [B, C, out_height, out_width]
    MapSizes sizes;
    int32_t element_size;  //!< 2 or 4 bytes
};

//! Enqueues the copy. An index outside the map is clamped to it: no read is ever out of bounds.
//! Returns cudaErrorInvalidValue for sizes that are out of range.
cudaError_t launchLineCopy(LineCopy const& copy, cudaStream_t stream) noexcept;

}  // namespace stormrt

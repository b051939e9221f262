// SPDX-License-Identifier: Apache-2.0
// SpatialUnitMerge on the GPU: one launch, no allocation, no synchronisation.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/map_sizes.h"

namespace stormrt::spatial_unit_merge {

//! Means of cells, weighted by lines; all tensors contiguous in device memory.
struct Params {
    void const* x;              //!< [B, C, height, width], FP16 or FP32
    int32_t const* row_starts;  //!< [B, out_height]
    int32_t const* col_starts;  //!< [B, out_width]
    float const* row_weights;   //!< [B, height]
    float const* col_weights;   //!< [B, width]
    void* y;                    //!< [B, C, out_height, out_width], type of x
    MapSizes sizes;
    bool is_half;
};

//! Enqueues the merge. Starts outside the map are clamped to it: no read is ever out of bounds. A
//! cell without lines, or whose weights do not add up to more than 0, gives 0.
//! Returns cudaErrorInvalidValue for sizes that are out of range.
cudaError_t launch(Params const& params, cudaStream_t stream) noexcept;

}  // namespace stormrt::spatial_unit_merge

// SPDX-License-Identifier: Apache-2.0
// SelectiveScan2D on the GPU: one launch, no allocation, no synchronisation, safe under CUDA
// graphs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace stormrt::selective_scan_2d {

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1 };

//! The operands of one call. Shapes are those of SPEC (plugins/selective_scan_2d/__init__.py); all
//! tensors are contiguous and lie in device memory. K = 4 directions.
struct Params {
    void const* x;         //!< [B, D, H, W], dtype
    void const* dt;        //!< [B, K*D, H, W], dtype, before bias and softplus
    void const* b;         //!< [B, K*N, H, W], dtype
    void const* c;         //!< [B, K*N, H, W], dtype
    float const* a;        //!< [K*D, N], negative
    float const* d;        //!< [K*D]
    float const* dt_bias;  //!< [K*D]
    void* y;               //!< [B, D, H, W], dtype
    int32_t batch;
    int32_t channels;
    int32_t height;
    int32_t width;
    int32_t state;
    DType dtype;
};

//! Tactics that this call can run with: 1 to countTactics(). Tactic 0 is the default choice.
int32_t countTactics(Params const& params) noexcept;

//! Enqueues the scan. Returns cudaErrorInvalidValue for sizes that are out of range (a dimension
//! under 1, a state over kMaxState, a height over kMaxHeight, more than 2^31 - 1 elements of dt) or
//! an unknown tactic.
cudaError_t launch(Params const& params, int32_t tactic, cudaStream_t stream) noexcept;

constexpr int32_t kMaxState = 16;
//! A column is one band's: 256 threads, 7 positions each.
constexpr int32_t kMaxHeight = 1792;

}  // namespace stormrt::selective_scan_2d

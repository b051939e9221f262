// SPDX-License-Identifier: Apache-2.0
// What the scan's kernels share: numbers, divisions, barriers.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

namespace stormrt::selective_scan_2d {

constexpr int kDirections = 4;
constexpr int kWarp = 32;
constexpr int kDefaultSharedBytes = 48 * 1024;
constexpr float kLog2E = 1.4426950408889634F;
constexpr float kLn2 = 0.6931471805599453F;

inline int ceilDiv(int a, int b) { return (a + b - 1) / b; }

//! Division by a number that is known at launch: one multiplication. Exact for 0 <= n < 2^31
//! (Granlund and Montgomery, "Division by Invariant Integers using Multiplication", 1994).
struct Divisor {
    uint32_t multiplier;
    uint32_t shift;

    __device__ __forceinline__ int quotient(int n) const {
        return static_cast<int>(__umulhi(2U * static_cast<uint32_t>(n), multiplier) >> shift);
    }
};

inline Divisor divisor(int d) {
    uint32_t shift = 0;
    while ((1ULL << shift) < static_cast<uint64_t>(d)) ++shift;
    uint64_t const power = 1ULL << (31 + shift);
    return {static_cast<uint32_t>((power + d - 1) / d), shift};
}

// The special-function unit: relative error 2^-22 and absolute error 2^-22, far below the rounding
// of FP16 operands.
__device__ __forceinline__ float fastExp2(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

__device__ __forceinline__ float fastLog2(float v) {
    float r;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

//! log2(1 + 2^z) = log2(e) softplus(z ln 2), for any z.
__device__ __forceinline__ float fastLog2OnePlusExp2(float z) {
    return fmaxf(z, 0.0F) + fastLog2(1.0F + fastExp2(-fabsf(z)));
}

template <int kBytes>
struct Chunk;
template <>
struct Chunk<2> {
    using type = uint16_t;
};
template <>
struct Chunk<4> {
    using type = uint32_t;
};
template <>
struct Chunk<8> {
    using type = uint2;
};
template <>
struct Chunk<16> {
    using type = uint4;
};

//! Waits for the other threads of a group. Barrier 0 is the block's.
__device__ __forceinline__ void groupBarrier(int group, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "r"(threads) : "memory");
}

}  // namespace stormrt::selective_scan_2d

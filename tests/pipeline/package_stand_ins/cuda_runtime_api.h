// SPDX-License-Identifier: Apache-2.0
// A stand-in for CUDA, for tests of the C++ program without a GPU: memory is the host's.
#pragma once
#include <cstdlib>
#include <cstring>
enum cudaError_t { cudaSuccess, cudaErrorNoDevice };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
using cudaStream_t = int*;
inline char const* cudaGetErrorString(cudaError_t) { return "no device"; }
inline cudaError_t cudaGetDeviceCount(int* n) {
    *n = 1;
    return std::getenv("FAKE_NO_GPU") ? cudaErrorNoDevice : cudaSuccess;
}
inline cudaError_t cudaMalloc(void** p, std::size_t n) {
    *p = std::malloc(n);
    return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
    std::free(p);
    return cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* s) {
    *s = new int;
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t s) {
    delete s;
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, void const* from, std::size_t n, cudaMemcpyKind,
                                   cudaStream_t) {
    std::memcpy(to, from, n);
    return cudaSuccess;
}

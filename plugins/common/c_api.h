/* SPDX-License-Identifier: Apache-2.0
 * The operators without TensorRT: for PyTorch on CUDA, tests and benchmarks. Python's side is
 * plugins/native.py. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a declaration below changes. */
#define STORMRT_ABI_VERSION 1

/* A contiguous tensor in device memory. */
typedef struct StormrtTensor {
    void* data;
    int32_t rank;
    int32_t reserved; /* 0 */
    int64_t extents[8];
} StormrtTensor;

typedef struct StormrtCall {
    char const* op;        /* name of the operator, e.g. "SelectiveScan2D" */
    StormrtTensor* inputs; /* in the order of the SPEC */
    StormrtTensor* outputs;
    int32_t input_count;
    int32_t output_count;
    int32_t io_type; /* type of the tensors that the SPEC marks "T": 0 float32, 1 float16 */
    int32_t tactic;  /* 0: the operator's default */
    void* stream;    /* cudaStream_t */
} StormrtCall;

/* STORMRT_ABI_VERSION of the library: compare before anything else is called. */
int32_t stormrt_abi_version(void);

/* What the library was built from, as JSON. */
char const* stormrt_build_info(void);

/* Enqueues a call on its stream. 0; or a cudaError_t; or -1, where the call does not fit the
 * operator's contract. `message`, which may be null, then holds the reason. */
int32_t stormrt_launch(StormrtCall const* call, char* message, int64_t message_size);

/* Tactics that can run a call, which may be 0; -1, and the reason, where the call does not fit.
 * Reads neither data nor stream. */
int32_t stormrt_count_tactics(StormrtCall const* call, char* message, int64_t message_size);

#ifdef __cplusplus
}
#endif

// SPDX-License-Identifier: Apache-2.0
// The part of the CUDA runtime that engine.hpp calls, in host memory. Work on a stream waits until
// the stream is synchronized, as it would on a GPU.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "fakes.h"

using Work = std::vector<std::function<void()>>;

struct CUstream_st {
    Work pending;
    Work recorded;
    bool isRecording = false;

    void run() {
        for (auto const& work : std::exchange(pending, {})) {
            work();
        }
    }
};

struct CUgraph_st {
    Work work;
};

struct CUgraphExec_st {
    Work work;
};

struct CUevent_st {};

namespace {

std::set<CUstream_st*> gStreams;

cudaError_t status(bool succeeds, cudaError_t failure = cudaErrorUnknown) {
    return succeeds ? cudaSuccess : failure;
}

template <typename T>
cudaError_t make(char const* name, T** made) {
    if (!called(name)) {
        return cudaErrorMemoryAllocation;
    }
    *made = new T;
    ++gFakes.live;
    return cudaSuccess;
}

cudaError_t allocate(char const* name, void** memory, size_t size) {
    if (!called(name, std::to_string(size))) {
        return cudaErrorMemoryAllocation;
    }
    *memory = std::malloc(size);
    std::memset(*memory, 0xCC, size);
    ++gFakes.live;
    return cudaSuccess;
}

cudaError_t release(void* memory) {
    for (auto const* stream : gStreams) {
        gFakes.lostWork |= !stream->pending.empty();
    }
    std::free(memory);
    --gFakes.live;
    return cudaSuccess;
}

void add(cudaStream_t stream, std::function<void()> work) {
    (stream->isRecording ? stream->recorded : stream->pending).push_back(std::move(work));
}

}  // namespace

extern "C" {

char const* cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorUnknown";
}

char const* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : "unknown error";
}

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return status(called("cudaGetDevice"), cudaErrorNoDevice);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? gFakes.sm / 10 : gFakes.sm % 10;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t size) { return allocate("cudaMalloc", memory, size); }
cudaError_t cudaMallocHost(void** memory, size_t size) {
    return allocate("cudaMallocHost", memory, size);
}
cudaError_t cudaFree(void* memory) { return release(memory); }
cudaError_t cudaFreeHost(void* memory) { return release(memory); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
    cudaError_t const result = make("cudaStreamCreateWithFlags", stream);
    if (result == cudaSuccess) {
        gStreams.insert(*stream);
        gFakes.calls.back() += " " + std::to_string(flags);
    }
    return result;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    gStreams.erase(stream);
    delete stream;
    --gFakes.live;
    called("cudaStreamDestroy");
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    stream->run();
    return status(called("cudaStreamSynchronize"));
}

cudaError_t cudaMemcpyAsync(void* to, void const* from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    static char const* const kKinds[] = {"host", "in", "out", "device"};
    add(stream, [=] { std::memcpy(to, from, size); });
    return status(called("cudaMemcpyAsync", kKinds[kind] + (" " + std::to_string(size))));
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t toPitch, void const* from, size_t fromPitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
    add(stream, [=] {
        for (size_t row = 0; row < height; ++row) {
            std::memcpy(static_cast<char*>(to) + row * toPitch,
                        static_cast<char const*>(from) + row * fromPitch, width);
        }
    });
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
    add(stream, [=] { function(data); });
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* capturing) {
    *capturing = stream->isRecording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) {
    return make("cudaEventCreateWithFlags", event);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    --gFakes.live;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t stream) {
    stream->run();
    return status(called("cudaEventRecord"));
}

cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned int) {
    return status(called("cudaStreamWaitEvent"));
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    bool const succeeds =
        called("cudaStreamBeginCapture", std::to_string(mode)) && !stream->isRecording;
    stream->isRecording |= succeeds;
    return status(succeeds);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    stream->isRecording = false;
    Work recorded = std::exchange(stream->recorded, {});
    if (!called("cudaStreamEndCapture")) {
        *graph = nullptr;
        return cudaErrorStreamCaptureInvalidated;
    }
    *graph = new CUgraph_st{std::move(recorded)};
    ++gFakes.live;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    --gFakes.live;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                          unsigned long long) {
    if (!called("cudaGraphInstantiateWithFlags")) {
        return cudaErrorUnknown;
    }
    *executable = new CUgraphExec_st{graph->work};
    ++gFakes.live;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete executable;
    --gFakes.live;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    for (auto const& work : executable->work) {
        stream->pending.push_back(work);
    }
    return status(called("cudaGraphLaunch"));
}

}  // extern "C"

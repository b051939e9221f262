// SPDX-License-Identifier: Apache-2.0
// The part of the CUDA driver that runtime/driver.py calls, in host memory: compiled against
// cuda.h, so that a wrong name or type does not compile. Writes down each call; fails where it is
// told to.
#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

struct CUevent_st {
    float atMs = -1;
};

struct CUgraph_st {
    std::vector<std::function<void()>> work;
};

struct CUgraphExec_st : CUgraph_st {};

struct CUstream_st {
    CUgraph_st* recording = nullptr;
};

namespace {

std::string gLog;
std::string gFailing;
CUresult gStatus = CUDA_SUCCESS;
int gLive = 0;
float gClockMs = 0;
int gActive = 0;

CUresult called(char const* name, std::string const& arguments = "") {
    gLog += name + (arguments.empty() ? "" : " " + arguments) + "\n";
    return gFailing == name ? gStatus : CUDA_SUCCESS;
}

CUresult enqueue(char const* name, std::string const& arguments, CUstream stream,
                 std::function<void()> work) {
    if (CUresult const status = called(name, arguments); status != CUDA_SUCCESS) {
        return status;
    }
    if (stream->recording != nullptr) {
        stream->recording->work.push_back(std::move(work));
    } else {
        work();
    }
    return CUDA_SUCCESS;
}

CUresult copy(char const* name, void* to, void const* from, size_t size, CUstream stream) {
    return enqueue(name, std::to_string(size), stream, [=] {
        std::memcpy(to, from, size);
        gClockMs += 2;
    });
}

}  // namespace

#undef cuEventElapsedTime  // cuda.h means a later one; both are exported

extern "C" {

char const* fakeLog() { return gLog.c_str(); }
int fakeLive() { return gLive; }
int fakeActive() { return gActive; }
void fakeReset() { gLog.clear(), gFailing.clear(), gStatus = CUDA_SUCCESS; }
void fakeFail(char const* name, int status) {
    gFailing = name;
    gStatus = static_cast<CUresult>(status);
}
CUstream fakeStream() {
    static CUstream_st stream;
    return &stream;
}
int fakeIsRecording() { return fakeStream()->recording != nullptr; }

CUresult cuGetErrorName(CUresult error, char const** name) {
    *name = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : nullptr;
    return *name != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, char const** text) {
    *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : nullptr;
    return *text != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, void const* from, size_t size, CUstream stream) {
    return copy("cuMemcpyHtoDAsync", reinterpret_cast<void*>(to), from, size, stream);
}

CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t size, CUstream stream) {
    return copy("cuMemcpyDtoHAsync", to, reinterpret_cast<void const*>(from), size, stream);
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    return copy("cuMemcpyDtoDAsync", reinterpret_cast<void*>(to),
                reinterpret_cast<void const*>(from), size, stream);
}

CUresult cuStreamSynchronize(CUstream) { return called("cuStreamSynchronize"); }

CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned int flags) {
    return called("cuStreamWaitEvent", std::to_string(flags));
}

CUresult cuInit(unsigned int) { return called("cuInit"); }

CUresult cuDeviceGetCount(int* count) {
    *count = 1;
    return called("cuDeviceGetCount");
}

CUresult cuDeviceGet(CUdevice* device, int index) {
    *device = index;
    return called("cuDeviceGet", std::to_string(index));
}

CUresult cuDeviceGetName(char* name, int size, CUdevice) {
    std::snprintf(name, size, "A GPU");
    return called("cuDeviceGetName", std::to_string(size));
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
    *value = which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR   ? 8
             : which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? 7
                                                                     : -1;
    return called("cuDeviceGetAttribute");
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    *context = reinterpret_cast<CUcontext>(fakeStream());  // an address that is not small
    return called("cuDevicePrimaryCtxRetain");
}

CUresult cuCtxPushCurrent(CUcontext context) {
    ++gActive;
    return called("cuCtxPushCurrent", context == nullptr ? "none" : "");
}

CUresult cuCtxPopCurrent(CUcontext*) {
    --gActive;
    return called("cuCtxPopCurrent");
}

CUresult cuMemAlloc(CUdeviceptr* pointer, size_t size) {
    CUresult const status = called("cuMemAlloc", std::to_string(size));
    if (status == CUDA_SUCCESS) {
        *pointer = reinterpret_cast<CUdeviceptr>(std::malloc(size));
        ++gLive;
    }
    return status;
}

CUresult cuMemFree(CUdeviceptr pointer) {
    std::free(reinterpret_cast<void*>(pointer));
    --gLive;
    return called("cuMemFree");
}

CUresult cuMemHostAlloc(void** pointer, size_t size, unsigned int flags) {
    CUresult const status =
        called("cuMemHostAlloc", std::to_string(size) + " " + std::to_string(flags));
    if (status == CUDA_SUCCESS) {
        *pointer = std::malloc(size);
        ++gLive;
    }
    return status;
}

CUresult cuMemFreeHost(void* pointer) {
    std::free(pointer);
    --gLive;
    return called("cuMemFreeHost");
}

CUresult cuMemGetInfo(size_t* free, size_t* total) {
    *free = size_t{5} << 30;
    *total = size_t{8} << 30;
    return called("cuMemGetInfo");
}

CUresult cuStreamCreate(CUstream* stream, unsigned int flags) {
    *stream = new CUstream_st;
    ++gLive;
    return called("cuStreamCreate", std::to_string(flags));
}

CUresult cuStreamDestroy(CUstream stream) {
    delete stream;
    --gLive;
    return called("cuStreamDestroy");
}

CUresult cuEventCreate(CUevent* event, unsigned int flags) {
    *event = new CUevent_st;
    ++gLive;
    return called("cuEventCreate", std::to_string(flags));
}

CUresult cuEventDestroy(CUevent event) {
    delete event;
    --gLive;
    return called("cuEventDestroy");
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    event->atMs = gClockMs;
    return called("cuEventRecord", stream == fakeStream() ? "own" : "other");
}

CUresult cuEventSynchronize(CUevent) { return called("cuEventSynchronize"); }

CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    *milliseconds = end->atMs - start->atMs;
    return called("cuEventElapsedTime");
}

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
    CUresult const status = called("cuStreamBeginCapture", std::to_string(mode));
    if (status == CUDA_SUCCESS) {
        stream->recording = new CUgraph_st;
        ++gLive;
    }
    return status;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    *graph = stream->recording;
    stream->recording = nullptr;
    CUresult const status = called("cuStreamEndCapture");
    if (status != CUDA_SUCCESS) {
        delete *graph, *graph = nullptr, --gLive;
    }
    return status;
}

CUresult cuGraphDestroy(CUgraph graph) {
    delete graph;
    --gLive;
    return called("cuGraphDestroy");
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph,
                                     unsigned long long flags) {
    CUresult const status = called("cuGraphInstantiateWithFlags", std::to_string(flags));
    if (status == CUDA_SUCCESS) {
        *executable = new CUgraphExec_st{*graph};
        ++gLive;
    }
    return status;
}

CUresult cuGraphExecDestroy(CUgraphExec executable) {
    delete executable;
    --gLive;
    return called("cuGraphExecDestroy");
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream) {
    CUresult const status = called("cuGraphLaunch");
    for (auto const& work : executable->work) {
        work();
    }
    return status;
}

}  // extern "C"

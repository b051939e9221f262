// SPDX-License-Identifier: Apache-2.0
// What engine.hpp is made of: its error, TensorRT's log, and owners of what CUDA gives.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace stormrt {

// What failed, what was got and expected, and what to do about it. what() is all of it.
class Error : public std::runtime_error {
public:
    explicit Error(std::string const& whatFailed, std::string const& whatWasGot = "",
                   std::string const& whatWasExpected = "", std::string const& whatToDo = "")
        : std::runtime_error(whatFailed + line("got", whatWasGot) +
                             line("expected", whatWasExpected) + line("fix", whatToDo)),
          problem(whatFailed),
          got(whatWasGot),
          expected(whatWasExpected),
          fix(whatToDo) {}

    std::string problem;
    std::string got;
    std::string expected;
    std::string fix;

private:
    static std::string line(char const* label, std::string const& text) {
        return text.empty() ? "" : std::string("\n  ") + label + ": " + text;
    }
};

using LogCallback = std::function<void(nvinfer1::ILogger::Severity, char const*)>;

namespace detail {

// TensorRT keeps the first logger that it is given for the whole process: there is one, for ever.
class Log final : public nvinfer1::ILogger {
public:
    static Log& instance() {
        static Log* const log = new Log;
        return *log;
    }

    void log(Severity severity, char const* message) noexcept override {
        try {
            std::lock_guard<std::mutex> const lock(mutex_);
            if (severity <= Severity::kERROR) {
                errors_ += (errors_.empty() ? "" : "; ") + std::string(message);
            }
            if (callback_) {
                callback_(severity, message);
            }
        } catch (...) {  // TensorRT's code must not be unwound
        }
    }

    void setCallback(LogCallback callback) {
        std::lock_guard<std::mutex> const lock(mutex_);
        callback_ = std::move(callback);
    }

    // The errors since the last call.
    std::string takeErrors() {
        std::lock_guard<std::mutex> const lock(mutex_);
        return std::exchange(errors_, {});
    }

private:
    std::mutex mutex_;
    std::string errors_;
    LogCallback callback_;
};

inline void check(cudaError_t status, char const* call) {
    if (status != cudaSuccess) {
        std::string const reason =
            std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status);
        throw Error(std::string("CUDA failed in ") + call, reason, "",
                    status == cudaErrorMemoryAllocation
                        ? "close other programs that use the GPU (on a Jetson all programs do)"
                        : "");
    }
}

// A deleter from a C function. Its status is an earlier error, told already, that comes up again.
template <auto function>
struct Release {
    template <typename T>
    void operator()(T* handle) const noexcept {
        static_cast<void>(function(handle));
    }
};

using DeviceMemory = std::unique_ptr<void, Release<cudaFree>>;
using PinnedMemory = std::unique_ptr<void, Release<cudaFreeHost>>;
using Stream = std::unique_ptr<CUstream_st, Release<cudaStreamDestroy>>;
using Event = std::unique_ptr<CUevent_st, Release<cudaEventDestroy>>;
using Graph = std::unique_ptr<CUgraph_st, Release<cudaGraphDestroy>>;
using GraphExec = std::unique_ptr<CUgraphExec_st, Release<cudaGraphExecDestroy>>;

inline DeviceMemory allocate(std::size_t size) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, size), "cudaMalloc");
    return DeviceMemory(memory);
}

inline PinnedMemory allocatePinned(std::size_t size) {
    void* memory = nullptr;
    check(cudaMallocHost(&memory, size), "cudaMallocHost");
    return PinnedMemory(memory);
}

inline std::string readFile(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw Error("the engine could not be read", path, "a file engine.plan",
                    "build it on this machine: stormrt build FOLDER");
    }
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline std::string format(nvinfer1::Dims const& shape) {
    std::string text;
    for (int32_t i = 0; i < shape.nbDims; ++i) {
        text += (i > 0 ? ", " : "") + std::to_string(shape.d[i]);
    }
    return "(" + text + ")";
}

// An input or output.
struct Tensor {
    std::string name;
    nvinfer1::Dims shape{};  // the first extent is the batch, -1 where that is open
    std::size_t itemBytes = 0;
    DeviceMemory device;
    PinnedMemory host;
};

}  // namespace detail

}  // namespace stormrt

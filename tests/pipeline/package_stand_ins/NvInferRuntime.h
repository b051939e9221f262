// SPDX-License-Identifier: Apache-2.0
// A stand-in for TensorRT, for tests of the C++ program without a GPU. The text of the plan says
// what its engine does: "right" answers with the golden logits of the photograph that it is given;
// "wrong", "nan", "none" (does not load), "fails" (does not run).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>
namespace nvinfer1 {
struct Dims {
    int32_t nbDims;
    int64_t d[8];
};
struct ILogger {
    enum class Severity : int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO };
    virtual void log(Severity, char const*) noexcept = 0;
    virtual ~ILogger() = default;
};
struct IPluginRegistry {
    void* loadLibrary(char const* path) {
        std::printf("loaded %s\n", path);
        return std::string(path).find("bad") == std::string::npos ? this : nullptr;
    }
};
inline std::vector<float> floats(char const* path) {
    std::ifstream file(path, std::ios::binary);
    std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    std::vector<float> values(bytes.size() / 4);
    std::memcpy(values.data(), bytes.data(), values.size() * 4);
    return values;
}
struct IExecutionContext {
    std::string does;
    Dims shape{};
    float const* in = nullptr;
    float* out = nullptr;
    bool setInputShape(char const* name, Dims const& dims) {
        shape = dims;
        return std::strcmp(name, "images") == 0;
    }
    bool setTensorAddress(char const* name, void* data) {
        (std::strcmp(name, "images") == 0 ? const_cast<float*&>(in) : out) =
            static_cast<float*>(data);
        return true;
    }
    bool enqueueV3(int*) {
        if (does == "fails") return false;
        auto const images = floats("golden_images.f32"), logits = floats("golden_logits.f32");
        std::size_t const size = shape.d[1] * shape.d[2] * shape.d[3];
        std::size_t const count = images.size() / size, classes = logits.size() / count;
        for (int64_t b = 0; b < shape.d[0]; ++b) {
            std::size_t best = 0;
            double least = 1e30;
            for (std::size_t i = 0; i < count; ++i) {
                double sum = 0;
                for (std::size_t k = 0; k < size; ++k) {
                    sum += std::abs(images[i * size + k] - in[b * size + k]);
                }
                if (sum < least) {
                    least = sum;
                    best = i;
                }
            }
            for (std::size_t c = 0; c < classes; ++c) {
                float value = logits[best * classes + c];
                if (does == "wrong") value = -value;
                if (does == "nan") value = NAN;
                out[b * classes + c] = value;
            }
        }
        return true;
    }
};
struct ICudaEngine {
    std::string does;
    IExecutionContext* createExecutionContext() { return new IExecutionContext{does}; }
};
struct IRuntime {
    IPluginRegistry registry;
    IPluginRegistry& getPluginRegistry() { return registry; }
    ICudaEngine* deserializeCudaEngine(void const* data, std::size_t size) {
        std::string const does(static_cast<char const*>(data), size);
        return does == "none" ? nullptr : new ICudaEngine{does};
    }
};
inline IRuntime* createInferRuntime(ILogger& logger) {
    logger.log(ILogger::Severity::kINFO, "an information that is not shown");
    return new IRuntime;
}
}  // namespace nvinfer1

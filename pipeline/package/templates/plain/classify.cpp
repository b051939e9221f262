// SPDX-License-Identifier: Apache-2.0
// Runs the engine of this folder on photographs, or checks it on the golden data.
//
//   classify [--engine FILE] [--plugins FILE] PHOTO.ppm ...
//   classify [--engine FILE] [--plugins FILE] --check
//
// Exit codes: 0 fine, 1 the check failed, 2 bad usage or file, 3 the engine or CUDA refused.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "model.h"
#include "preprocess.h"

namespace {

//! The engine or CUDA refused: the machine is not the one that the engine is for.
struct Refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void check(cudaError_t status, char const* what) {
    if (status != cudaSuccess) {
        throw Refused(std::string(what) + ": " + cudaGetErrorString(status));
    }
}

class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) {
            std::fprintf(stderr, "TensorRT: %s\n", message);
        }
    }
};

std::vector<char> readFile(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::runtime_error(path + ": cannot be read; the README says how to get it");
    }
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<float> readFloats(std::string const& path) {
    std::vector<char> const bytes = readFile(path);
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
    return values;
}

//! Memory of the GPU, freed with its owner.
class DeviceBuffer {
public:
    explicit DeviceBuffer(std::size_t bytes) { check(cudaMalloc(&data_, bytes), "cudaMalloc"); }
    ~DeviceBuffer() { cudaFree(data_); }
    DeviceBuffer(DeviceBuffer const&) = delete;
    DeviceBuffer& operator=(DeviceBuffer const&) = delete;
    void* get() const { return data_; }

private:
    void* data_ = nullptr;
};

//! A stream, destroyed with its owner.
class Stream {
public:
    Stream() { check(cudaStreamCreate(&stream_), "cudaStreamCreate"); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(Stream const&) = delete;
    Stream& operator=(Stream const&) = delete;
    cudaStream_t get() const { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
};

//! The engine: loaded once, run image by image.
class Classifier {
public:
    Classifier(std::string const& enginePath, std::string const& pluginPath) {
        std::vector<char> const plan = readFile(enginePath);
        if (!pluginPath.empty()) {
            readFile(pluginPath);  // so that a missing file is said to be missing
        }
        int devices = 0;
        check(cudaGetDeviceCount(&devices), "there is no GPU");
        runtime_.reset(nvinfer1::createInferRuntime(logger_));
        if (runtime_ == nullptr) {
            throw Refused("TensorRT does not start; its messages are above");
        }
        if (!pluginPath.empty() &&
            runtime_->getPluginRegistry().loadLibrary(pluginPath.c_str()) == nullptr) {
            throw Refused(pluginPath + ": TensorRT does not take it as a plugin library");
        }
        engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        if (engine_ == nullptr) {
            throw Refused(enginePath +
                          ": is for another GPU or another TensorRT; it was built by " +
                          std::string(model::kBuiltBy));
        }
        context_.reset(engine_->createExecutionContext());
        if (context_ == nullptr) {
            throw Refused("there is not enough memory for the engine");
        }
        stream_ = std::make_unique<Stream>();
        input_ = std::make_unique<DeviceBuffer>(sizeof(float) * model::kBatch * kImage);
        output_ = std::make_unique<DeviceBuffer>(sizeof(float) * model::kBatch * model::kClasses);
        nvinfer1::Dims const shape{4, {model::kBatch, 3, model::kHeight, model::kWidth}};
        bool const isSet = context_->setInputShape(model::kInput, shape) &&
                           context_->setTensorAddress(model::kInput, input_->get()) &&
                           context_->setTensorAddress(model::kOutput, output_->get());
        if (!isSet) {
            throw Refused(enginePath + ": has other inputs or outputs than this program");
        }
    }

    //! [3, H, W] -> logits [classes]. An engine with a fixed batch gets the image in every place.
    std::vector<float> run(float const* image) {
        cudaStream_t const stream = stream_->get();
        for (int i = 0; i < model::kBatch; ++i) {
            check(cudaMemcpyAsync(static_cast<float*>(input_->get()) + i * kImage, image,
                                  sizeof(float) * kImage, cudaMemcpyHostToDevice, stream),
                  "copying the image");
        }
        if (!context_->enqueueV3(stream)) {
            throw Refused("TensorRT did not run the engine; its messages are above");
        }
        std::vector<float> logits(model::kClasses);
        check(cudaMemcpyAsync(logits.data(), output_->get(), sizeof(float) * logits.size(),
                              cudaMemcpyDeviceToHost, stream),
              "copying the logits");
        check(cudaStreamSynchronize(stream), "running the engine");
        return logits;
    }

    static constexpr std::size_t kImage = std::size_t{3} * model::kHeight * model::kWidth;

private:
    // In the order in which they are needed: what is declared last is destroyed first.
    Logger logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::unique_ptr<Stream> stream_;
    std::unique_ptr<DeviceBuffer> input_;
    std::unique_ptr<DeviceBuffer> output_;
};

void printTopFive(std::vector<float> const& logits) {
    std::vector<int> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::size_t const shown = std::min<std::size_t>(5, order.size());
    std::partial_sort(order.begin(), order.begin() + shown, order.end(),
                      [&](int a, int b) { return logits[a] > logits[b]; });
    double sum = 0.0;
    for (float const value : logits) {
        sum += std::exp(static_cast<double>(value) - logits[order[0]]);
    }
    for (std::size_t i = 0; i < shown; ++i) {
        double const part = std::exp(static_cast<double>(logits[order[i]]) - logits[order[0]]);
        std::printf("%6.1f %%  %s\n", 100.0 * part / sum, model::kLabels[order[i]]);
    }
}

//! Compares with FP32 PyTorch's logits for the golden photographs.
bool checkGolden(Classifier& classifier) {
    std::vector<float> const images = readFloats(model::kGoldenImages);
    std::vector<float> const reference = readFloats(model::kGoldenLogits);
    std::size_t const count = reference.size() / model::kClasses;
    if (count == 0 || images.size() != count * Classifier::kImage) {
        throw std::runtime_error("the golden data is damaged: package the bundle again");
    }
    double difference = 0.0, norm = 0.0;
    std::size_t same = 0;
    for (std::size_t i = 0; i < count; ++i) {
        std::vector<float> const found = classifier.run(images.data() + i * Classifier::kImage);
        float const* const wanted = reference.data() + i * model::kClasses;
        for (int c = 0; c < model::kClasses; ++c) {
            difference += std::pow(static_cast<double>(found[c]) - wanted[c], 2);
            norm += std::pow(static_cast<double>(wanted[c]), 2);
        }
        same += std::max_element(found.begin(), found.end()) - found.begin() ==
                std::max_element(wanted, wanted + model::kClasses) - wanted;
    }
    double const relative = std::sqrt(difference / norm);
    // Not "<": a NaN must fail.
    bool const isFine = relative <= model::kMostRelativeL2 &&
                        same >= std::ceil(model::kLeastArgmaxAgreement * count);
    std::printf("%zu photographs: relative L2 %.2e (at most %.2e), same class %zu: %s\n", count,
                relative, model::kMostRelativeL2, same, isFine ? "passed" : "FAILED");
    return isFine;
}

int run(std::vector<std::string> const& arguments) {
    std::string engine = model::kEngine;
    std::string plugins = model::kPlugins;
    std::vector<std::string> photographs;
    bool isCheck = false;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        std::string const& argument = arguments[i];
        bool const takesValue = argument == "--engine" || argument == "--plugins";
        if (takesValue && i + 1 < arguments.size()) {
            (argument == "--engine" ? engine : plugins) = arguments[++i];
        } else if (argument == "--check") {
            isCheck = true;
        } else if (takesValue || argument.rfind("--", 0) == 0) {
            throw std::invalid_argument(argument + ": unknown, or without its value");
        } else {
            photographs.push_back(argument);
        }
    }
    if (photographs.empty() != isCheck) {
        throw std::invalid_argument("give photographs (.ppm), or --check");
    }
    std::vector<std::vector<float>> inputs;
    for (std::string const& path : photographs) {
        inputs.push_back(stormrt::preprocess(stormrt::readPpm(path), model::kPreprocessing));
    }
    Classifier classifier(engine, plugins);
    if (isCheck) {
        return checkGolden(classifier) ? 0 : 1;
    }
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        std::printf("%s\n", photographs[i].c_str());
        printTopFive(classifier.run(inputs[i].data()));
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return run({argv + 1, argv + argc});
    } catch (Refused const& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 3;
    } catch (std::exception const& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
}

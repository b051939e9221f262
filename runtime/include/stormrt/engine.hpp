// SPDX-License-Identifier: Apache-2.0
// Running a built engine from C++17, with TensorRT (10.3 to 11) and the CUDA runtime alone.
// The same as stormrt.runtime.Engine in Python: docs/runtime.md.
//
//     stormrt::Options options;
//     options.plugins = {{"build/plugins/libstormrt_plugins.so", "<SHA-256 of the manifest>"}};
//     stormrt::Engine engine("build/engine.plan", options);
//     engine.infer(images.data(), logits.data(), 1);
//
// An Engine belongs to the CUDA device that is current when it is made, which must be current
// in every call, and to one thread at a time.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "checks.hpp"
#include "support.hpp"

namespace stormrt {

// Sees every message of TensorRT; errors are also told by the exceptions.
inline void setLog(LogCallback callback) {
    detail::Log::instance().setCallback(std::move(callback));
}

class Engine {
public:
    // Loads a plan. Throws Error where it does not fit here.
    explicit Engine(std::string const& plan, Options options = {})
        : plan_(plan), options_(std::move(options)) {
        detail::checkMachine(options_);
        detail::checkDigest(plan_, options_.sha256,
                            "the engine is not the one that the manifest describes",
                            "copy the folder again, or build it again: stormrt build FOLDER");
        detail::loadPlugins(options_.plugins);
        openStream();
        deserialize();
        describe();
        for (detail::Tensor* tensor : {&input_, &output_}) {
            std::size_t const size = tensor->itemBytes * static_cast<std::size_t>(mostBatch_);
            tensor->host = detail::allocatePinned(size);
            tensor->device = detail::allocate(size);
        }
        if (hasContextPerBatch()) {
            activationBytes_ = std::max<int64_t>(1, engine_->getDeviceMemorySizeV2());
            activations_ = detail::allocate(static_cast<std::size_t>(activationBytes_));
        }
    }

    ~Engine() {
        if (stream_ != nullptr) {
            static_cast<void>(cudaStreamSynchronize(stream_));
        }
    }

    Engine(Engine const&) = delete;
    Engine& operator=(Engine const&) = delete;

    // Images [batch, 3, H, W] in host memory -> logits [batch, classes] in host memory, both
    // FP32. Waits for the result.
    void infer(float const* images, float* logits, int32_t batch) {
        checkBatch(batch);
        std::size_t const inBytes = bytes(input_, batch);
        std::size_t const outBytes = bytes(output_, batch);
        std::memcpy(input_.host.get(), images, inBytes);
        guarded([&] {
            copy(input_.device.get(), input_.host.get(), inBytes, cudaMemcpyHostToDevice);
            run(batch);
            copy(output_.host.get(), output_.device.get(), outBytes, cudaMemcpyDeviceToHost);
            synchronize();
        });
        std::memcpy(logits, output_.host.get(), outBytes);
    }

    // The same from device memory to device memory, enqueued on stream(). Returns at once:
    // images must be there by then (waitFor), logits are once the stream is done.
    void enqueue(float const* images, float* logits, int32_t batch) {
        checkBatch(batch);
        guarded([&] {
            copy(input_.device.get(), images, bytes(input_, batch), cudaMemcpyDeviceToDevice);
            run(batch);
            copy(logits, output_.device.get(), bytes(output_, batch), cudaMemcpyDeviceToDevice);
        });
    }

    // What comes next starts after what another stream has been given so far.
    void waitFor(cudaStream_t other) {
        if (order_ == nullptr) {
            cudaEvent_t event = nullptr;
            detail::check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming),
                          "cudaEventCreateWithFlags");
            order_.reset(event);
        }
        detail::check(cudaEventRecord(order_.get(), other), "cudaEventRecord");
        detail::check(cudaStreamWaitEvent(stream_, order_.get(), 0), "cudaStreamWaitEvent");
    }

    void synchronize() { detail::check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

    cudaStream_t stream() const { return stream_; }
    int32_t leastBatch() const { return leastBatch_; }
    int32_t mostBatch() const { return mostBatch_; }
    std::string const& inputName() const { return input_.name; }
    std::string const& outputName() const { return output_.name; }
    // With the batch first, -1 where that is open.
    nvinfer1::Dims const& inputShape() const { return input_.shape; }
    nvinfer1::Dims const& outputShape() const { return output_.shape; }

private:
    struct Context {
        std::unique_ptr<nvinfer1::IExecutionContext> api;
        int32_t batch = 0;
    };

    // --- Loading ---

    void openStream() {
        stream_ = options_.stream;
        if (stream_ == nullptr) {
            // Not held up by what happens on the default stream; inputs are ordered by waitFor.
            detail::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                          "cudaStreamCreateWithFlags");
            own_.reset(stream_);
        }
    }

    void deserialize() {
        std::string const plan = detail::readFile(plan_);
        detail::Log::instance().takeErrors();
        runtime_.reset(nvinfer1::createInferRuntime(detail::Log::instance()));
        if (runtime_ == nullptr) {
            throw refused("does not start");
        }
        engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        if (engine_ == nullptr) {
            throw refused("does not take the engine");
        }
    }

    void describe() {
        std::vector<std::string> inputs;
        std::vector<std::string> outputs;
        for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
            std::string const name = engine_->getIOTensorName(i);
            bool const isInput =
                engine_->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
            (isInput ? inputs : outputs).push_back(name);
        }
        if (inputs.size() != 1 || outputs.size() != 1) {
            throw Error("the engine is none of a classifier",
                        std::to_string(inputs.size()) + " inputs, " +
                            std::to_string(outputs.size()) + " outputs",
                        "one of each");
        }
        describe(input_, inputs[0]);
        describe(output_, outputs[0]);
        leastBatch_ = mostBatch_ = static_cast<int32_t>(input_.shape.d[0]);
        isOpen_ = input_.shape.d[0] < 0;
        if (isOpen_) {
            leastBatch_ = profileBatch(nvinfer1::OptProfileSelector::kMIN);
            mostBatch_ = profileBatch(nvinfer1::OptProfileSelector::kMAX);
        }
        if (output_.shape.d[0] != input_.shape.d[0]) {
            throw Error("the engine's batches differ",
                        detail::format(input_.shape) + " -> " + detail::format(output_.shape));
        }
    }

    void describe(detail::Tensor& tensor, std::string const& name) const {
        tensor.name = name;
        tensor.shape = engine_->getTensorShape(name.c_str());
        if (engine_->getTensorDataType(name.c_str()) != nvinfer1::DataType::kFLOAT) {
            throw Error("the engine's inputs and outputs are not FP32", name, "",
                        "leave them FP32 in the graph, whatever its precision");
        }
        if (tensor.shape.nbDims < 1) {
            throw Error("the engine has no batch", name);
        }
        tensor.itemBytes = sizeof(float);
        for (int32_t i = 1; i < tensor.shape.nbDims; ++i) {
            if (tensor.shape.d[i] < 0) {
                throw Error("the engine's shapes are not fixed but for the batch",
                            name + " " + detail::format(tensor.shape));
            }
            tensor.itemBytes *= static_cast<std::size_t>(tensor.shape.d[i]);
        }
    }

    int32_t profileBatch(nvinfer1::OptProfileSelector which) const {
        return static_cast<int32_t>(engine_->getProfileShape(input_.name.c_str(), 0, which).d[0]);
    }

    // --- Running ---

    // A graph holds the state of the context that it was recorded from. With graphs each batch
    // has a context of its own; they take turns, and share one memory for activations.
    bool hasContextPerBatch() const { return options_.cudaGraph && leastBatch_ != mostBatch_; }

    nvinfer1::IExecutionContext& prepare(int32_t batch) {
        Context& context = contexts_[hasContextPerBatch() ? batch : 0];
        if (context.api == nullptr) {
            context.api = newContext();
        }
        if (isOpen_ && context.batch != batch) {
            nvinfer1::Dims shape = input_.shape;
            shape.d[0] = batch;
            context.batch = 0;
            if (!context.api->setInputShape(input_.name.c_str(), shape)) {
                throw refused("does not take a batch of " + std::to_string(batch));
            }
            context.batch = batch;
        }
        return *context.api;
    }

    std::unique_ptr<nvinfer1::IExecutionContext> newContext() {
        using Strategy = nvinfer1::ExecutionContextAllocationStrategy;
        Strategy const strategy = activations_ ? Strategy::kUSER_MANAGED : Strategy::kSTATIC;
        detail::Log::instance().takeErrors();
        std::unique_ptr<nvinfer1::IExecutionContext> context(
            engine_->createExecutionContext(strategy));
        if (context == nullptr) {
            throw refused("has no memory to run the engine");
        }
        if (activations_) {
            context->setDeviceMemoryV2(activations_.get(), activationBytes_);
        }
        for (detail::Tensor* tensor : {&input_, &output_}) {
            if (!context->setTensorAddress(tensor->name.c_str(), tensor->device.get())) {
                throw refused("does not take the address of " + tensor->name);
            }
        }
        return context;
    }

    void run(int32_t batch) {
        if (!options_.cudaGraph) {
            enqueueBatch(batch);
            return;
        }
        detail::GraphExec& graph = graphs_[batch];
        if (graph == nullptr) {
            graph = record(batch);
        }
        detail::check(cudaGraphLaunch(graph.get(), stream_), "cudaGraphLaunch");
    }

    void enqueueBatch(int32_t batch) {
        nvinfer1::IExecutionContext& context = prepare(batch);
        detail::Log::instance().takeErrors();
        if (!context.enqueueV3(stream_)) {
            throw refused("did not run the engine");
        }
    }

    detail::GraphExec record(int32_t batch) {
        // Once without: TensorRT does on the first run what a graph must not hold.
        enqueueBatch(batch);
        synchronize();
        detail::check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
                      "cudaStreamBeginCapture");
        cudaGraph_t recorded = nullptr;
        try {
            enqueueBatch(batch);
        } catch (...) {
            // A stream that goes on recording could not be used again.
            static_cast<void>(cudaStreamEndCapture(stream_, &recorded));
            detail::Graph const dropped(recorded);
            throw;
        }
        cudaError_t status = cudaStreamEndCapture(stream_, &recorded);
        detail::Graph const graph(recorded);
        cudaGraphExec_t executable = nullptr;
        if (status == cudaSuccess) {
            status = cudaGraphInstantiateWithFlags(&executable, recorded, 0);
        }
        if (status != cudaSuccess) {
            throw Error("the engine's work could not be recorded as a CUDA graph",
                        cudaGetErrorName(status), "", "load it without cudaGraph");
        }
        return detail::GraphExec(executable);
    }

    // Where something fails, what was enqueued before it still uses the caller's memory.
    template <typename Work>
    void guarded(Work const& work) {
        try {
            work();
        } catch (...) {
            static_cast<void>(cudaStreamSynchronize(stream_));
            throw;
        }
    }

    void checkBatch(int32_t batch) const {
        if (batch < leastBatch_ || batch > mostBatch_) {
            std::string const most = std::to_string(mostBatch_);
            throw Error("the engine takes no batch of that size", std::to_string(batch),
                        isOpen_ ? std::to_string(leastBatch_) + " to " + most : most,
                        isOpen_ ? "" : "fill the batch up, or build with --dynamic-batch");
        }
    }

    static std::size_t bytes(detail::Tensor const& tensor, int32_t batch) {
        return tensor.itemBytes * static_cast<std::size_t>(batch);
    }

    void copy(void* to, void const* from, std::size_t size, cudaMemcpyKind kind) {
        detail::check(cudaMemcpyAsync(to, from, size, kind, stream_), "cudaMemcpyAsync");
    }

    Error refused(std::string const& what) const { return detail::refused(what, plan_); }

    // In the order in which they are made; given back in the other one.
    std::string plan_;
    Options options_;
    detail::Stream own_;
    cudaStream_t stream_ = nullptr;
    detail::Event order_;
    detail::Tensor input_;
    detail::Tensor output_;
    int32_t leastBatch_ = 0;
    int32_t mostBatch_ = 0;
    bool isOpen_ = false;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    detail::DeviceMemory activations_;
    int64_t activationBytes_ = 0;
    std::map<int32_t, Context> contexts_;
    std::map<int32_t, detail::GraphExec> graphs_;
};

}  // namespace stormrt

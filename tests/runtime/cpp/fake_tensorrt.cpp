// SPDX-License-Identifier: Apache-2.0
// A TensorRT whose engines give the first numbers of each image. What engine.hpp does not call is
// in default_implementations.h, which the tests write from TensorRT's own headers: it ends the
// process.
//
// A plan is text: batch, 1 where that is open, then an image's extents.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "default_implementations.h"
#include "fakes.h"

using namespace nvinfer1;

namespace {

constexpr int64_t kClasses = 5;
constexpr int64_t kActivationBytes = 512;

struct Plan {
    int64_t batch = 0;
    bool isOpen = false;
    Dims image{};
    std::string kind;  // "half": its output is FP16; "two": it has two inputs

    static bool read(std::string const& text, Plan& plan) {
        std::istringstream stream(text);
        plan.image.nbDims = 4;
        stream >> plan.batch >> plan.isOpen;
        for (int i = 1; i < 4; ++i) {
            stream >> plan.image.d[i];
        }
        bool const isGood = static_cast<bool>(stream);
        stream >> plan.kind;
        return isGood;
    }

    Dims shape(std::string const& name, int64_t count) const {
        Dims result = image;
        if (name == "logits") {
            result.nbDims = 2;
            result.d[1] = kClasses;
        }
        result.d[0] = count;
        return result;
    }
};

ILogger* gLogger = nullptr;

void logError(char const* message) { gLogger->log(ILogger::Severity::kERROR, message); }

class Context final : public IExecutionContext, public DefaultExecutionContext {
public:
    Context(Plan const& plan, bool needsMemory) : plan_(plan), needsMemory_(needsMemory) {
        mImpl = this;
        batch_ = plan.isOpen ? 0 : plan.batch;
    }
    ~Context() override { called("~IExecutionContext"); }

    IExecutionContext* getPImpl() noexcept override { return this; }

    void setDeviceMemoryV2(void*, int64_t size) noexcept override {
        called("setDeviceMemoryV2", std::to_string(size));
        needsMemory_ = false;
    }

    bool setTensorAddress(char const* name, void* data) noexcept override {
        addresses_[name] = data;
        ++state_;
        return called("setTensorAddress", name);
    }

    bool setInputShape(char const*, Dims const& shape) noexcept override {
        batch_ = shape.d[0];
        ++state_;
        hasRun_ = false;
        return called("setInputShape", std::to_string(shape.d[0]));
    }

    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (!called("enqueueV3", std::to_string(batch_)) || needsMemory_ || batch_ == 0) {
            logError("Error Code 1: an illegal memory access was encountered");
            return false;
        }
        auto status = cudaStreamCaptureStatusNone;
        cudaStreamIsCapturing(stream, &status);
        if (status != cudaStreamCaptureStatusNone && !hasRun_) {
            logError("the first run is recorded");
            return false;
        }
        hasRun_ = true;
        enqueued_.push_back(std::make_unique<Enqueued>(Enqueued{this, state_}));
        cudaLaunchHostFunc(stream, checkState, enqueued_.back().get());
        int64_t const item = plan_.image.d[1] * plan_.image.d[2] * plan_.image.d[3];
        constexpr size_t kWidth = kClasses * sizeof(float);
        cudaMemcpy2DAsync(addresses_.at("logits"), kWidth, addresses_.at("images"),
                          static_cast<size_t>(item) * sizeof(float), kWidth,
                          static_cast<size_t>(batch_), cudaMemcpyDeviceToDevice, stream);
        return true;
    }

private:
    struct Enqueued {
        Context* context;
        int state;
    };

    // What was enqueued, or recorded, runs: has the context changed since?
    static void checkState(void* data) {
        auto const* enqueued = static_cast<Enqueued*>(data);
        gFakes.changedContext |= enqueued->context->state_ != enqueued->state;
    }

    std::vector<std::unique_ptr<Enqueued>> enqueued_;
    Plan plan_;
    bool needsMemory_;
    bool hasRun_ = false;
    int64_t batch_ = 0;
    int state_ = 0;
    std::map<std::string, void*> addresses_;
};

class Engine final : public ICudaEngine, public DefaultCudaEngine {
public:
    explicit Engine(Plan const& plan) : plan_(plan) { mImpl = this; }
    ~Engine() override { called("~ICudaEngine"); }

    ICudaEngine* getPImpl() noexcept override { return this; }
    int32_t getNbIOTensors() const noexcept override { return plan_.kind == "two" ? 3 : 2; }

    char const* getIOTensorName(int32_t index) const noexcept override {
        static char const* const kNames[] = {"images", "logits", "more"};
        return kNames[index];
    }

    TensorIOMode getTensorIOMode(char const* name) const noexcept override {
        return name == std::string("logits") ? TensorIOMode::kOUTPUT : TensorIOMode::kINPUT;
    }

    DataType getTensorDataType(char const*) const noexcept override {
        return plan_.kind == "half" ? DataType::kHALF : DataType::kFLOAT;
    }

    Dims getTensorShape(char const* name) const noexcept override {
        return plan_.shape(name, plan_.isOpen ? -1 : plan_.batch);
    }

    Dims getProfileShape(char const* name, int32_t,
                         OptProfileSelector which) const noexcept override {
        return plan_.shape(name, which == OptProfileSelector::kMIN ? 1 : plan_.batch);
    }

    int64_t getDeviceMemorySizeV2() const noexcept override { return kActivationBytes; }

    IExecutionContext* createExecutionContext(
        ExecutionContextAllocationStrategy strategy) noexcept override {
        bool const isManaged = strategy == ExecutionContextAllocationStrategy::kUSER_MANAGED;
        if (!called("createExecutionContext", isManaged ? "USER_MANAGED" : "STATIC")) {
            logError("Error Code 2: out of memory");
            return nullptr;
        }
        return new Context(plan_, isManaged);
    }

private:
    Plan plan_;
};

class Runtime final : public IRuntime, public DefaultRuntime {
public:
    Runtime() { mImpl = this; }
    ~Runtime() override { called("~IRuntime"); }

    IRuntime* getPImpl() noexcept override { return this; }

    ICudaEngine* deserializeCudaEngine(void const* blob, size_t size) noexcept override {
        called("deserializeCudaEngine");
        Plan plan;
        if (!Plan::read(std::string(static_cast<char const*>(blob), size), plan)) {
            logError("Error Code 1: Serialization (Magic tag does not match)");
            return nullptr;
        }
        return new Engine(plan);
    }
};

class Registry final : public DefaultPluginRegistry {
public:
    PluginLibraryHandle loadLibrary(char const* path) noexcept override {
        std::string const text(path);
        bool const succeeds = called("loadLibrary", text.substr(text.rfind('/') + 1));
        return succeeds ? this : nullptr;
    }
};

}  // namespace

extern "C" {

void* createInferRuntime_INTERNAL(void* logger, int32_t) noexcept {
    gLogger = static_cast<ILogger*>(logger);
    return called("createInferRuntime") ? static_cast<IRuntime*>(new Runtime) : nullptr;
}

IPluginRegistry* getPluginRegistry() noexcept {
    static Registry registry;
    return &registry;
}

int32_t getInferLibVersion() noexcept { return gFakes.version; }

}  // extern "C"

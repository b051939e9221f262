// SPDX-License-Identifier: Apache-2.0
// What stands for TensorRT where there is none: the steps that it takes with a plugin, in its
// order.
#pragma once
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace plugin_host {

using namespace nvinfer1;

inline void check(bool condition, std::string const& what) {
    if (!condition) {
        throw std::runtime_error(what);
    }
}

class Finder final : public ILoggerFinder {
public:
    ILogger* findLogger() override { return &logger_; }

private:
    class Logger final : public ILogger {
        void log(Severity, char const* text) noexcept override { std::cerr << text << "\n"; }
    };
    Logger logger_;
};

//! Stands for the context that TensorRT attaches a plugin to. Our plugins take nothing from it.
class Context final : public IPluginResourceContext {
public:
    IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

template <typename Capability>
Capability& capability(IPluginV3& plugin, PluginCapabilityType type) {
    auto* const found = static_cast<Capability*>(plugin.getCapabilityInterface(type));
    check(found != nullptr, "a capability is missing");
    return *found;
}

inline IPluginV3OneRuntime& runtimeOf(IPluginV3& plugin) {
    return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

//! The operator's creator in a plugin library, which stays loaded.
inline IPluginCreatorV3One& findCreator(char const* core, std::string const& op) {
    void* const library = dlopen(core, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        throw std::runtime_error(dlerror());
    }
    static Finder finder;
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
    int32_t count = 0;
    IPluginCreatorInterface* const* const creators =
        reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(
            dlsym(library, "getCreators"))(count);
    for (int32_t i = 0; i < count; ++i) {
        auto* const creator = static_cast<IPluginCreatorV3One*>(creators[i]);
        if (op == creator->getPluginName()) {
            return *creator;
        }
    }
    throw std::runtime_error("no operator " + op);
}

//! The build phase: a plugin that has been told what may come. Inputs first, then outputs.
inline std::unique_ptr<IPluginV3> build(IPluginCreatorV3One& creator, std::string const& op,
                                        std::vector<DynamicPluginTensorDesc> const& tensors,
                                        int32_t inputs) {
    std::unique_ptr<IPluginV3> plugin(
        creator.createPlugin(op.c_str(), nullptr, TensorRTPhase::kBUILD));
    check(plugin != nullptr, "not created");
    auto& phase = capability<IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD);
    auto const outputs = static_cast<int32_t>(tensors.size()) - inputs;
    check(phase.getNbOutputs() == outputs, "another number of outputs");
    for (int32_t i = 0; i < inputs + outputs; ++i) {
        check(phase.supportsFormatCombination(i, tensors.data(), inputs, outputs),
              "an unsupported combination");
    }
    check(phase.configurePlugin(tensors.data(), inputs, tensors.data() + inputs, outputs) == 0,
          "configurePlugin");
    check(phase.getWorkspaceSize(tensors.data(), inputs, tensors.data() + inputs, outputs) == 0,
          "a workspace is asked for");
    return plugin;
}

//! The execution phase: the plugin made again of what a plan would hold.
inline std::unique_ptr<IPluginV3> restore(IPluginCreatorV3One& creator, std::string const& op,
                                          IPluginV3& built) {
    std::unique_ptr<IPluginV3> plugin(creator.createPlugin(
        op.c_str(), runtimeOf(built).getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
    check(plugin != nullptr, "not created again");
    return plugin;
}

//! The plugin of one execution context.
inline std::unique_ptr<IPluginV3> attach(IPluginV3& restored) {
    static Context context;
    std::unique_ptr<IPluginV3> plugin(runtimeOf(restored).attachToContext(&context));
    check(plugin != nullptr, "not attached");
    return plugin;
}

}  // namespace plugin_host

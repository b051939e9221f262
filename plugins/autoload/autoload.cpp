// SPDX-License-Identifier: Apache-2.0
// Registers the core library's creators when this library is loaded, for hosts that only dlopen a
// plugin library (Isaac ROS, DeepStream, Triton, LD_PRELOAD). docs/adr/0008 says why it is apart.
#include <NvInferRuntime.h>

#include <cstdio>

extern "C" nvinfer1::IPluginCreatorInterface* const* stormrt_get_creators(int32_t& count) noexcept;
extern "C" void stormrt_set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

namespace {

//! Hosts that only dlopen give no finder; TensorRT's own logger is the best that is known.
class GlobalLogger final : public nvinfer1::ILoggerFinder {
public:
    nvinfer1::ILogger* findLogger() override { return getLogger(); }
};

__attribute__((constructor)) void registerCreators() noexcept {
    nvinfer1::IPluginRegistry* const registry = getPluginRegistry();
    if (registry == nullptr) {
        std::fprintf(stderr,
                     "stormrt: TensorRT has no plugin registry; no plugin was registered\n");
        return;
    }
    static GlobalLogger logger;
    int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* const creators = stormrt_get_creators(count);
    bool any = false;
    for (int32_t i = 0; i < count; ++i) {
        // The registry looks plugins up by the namespace that is given here, and by no other.
        auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        // False where the same plugin is registered already, by the core library or another copy
        // of this one. That one serves as well.
        any = registry->registerCreator(*creator, creator->getPluginNamespace()) || any;
    }
    if (any) {
        stormrt_set_logger_finder(&logger);
    }
}

}  // namespace

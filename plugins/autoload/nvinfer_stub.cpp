// SPDX-License-Identifier: Apache-2.0
// Stands in for libnvinfer while the autoload library is linked, and nowhere else: what counts is
// its SONAME, which the loader then looks for. So no machine needs TensorRT's library to build.
#include <NvInferRuntime.h>

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginRegistry*
getPluginRegistry() noexcept {
    return nullptr;
}

extern "C" __attribute__((visibility("default"))) nvinfer1::ILogger* getLogger() noexcept {
    return nullptr;
}

// SPDX-License-Identifier: Apache-2.0
// All that the core library exports. Everything else in it is hidden.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <new>
#include <type_traits>

#include "common/c_api.h"
#include "common/logging.h"
#include "common/plugin_v3.h"
#include "plugin_list.h"

#define STORMRT_EXPORT extern "C" __attribute__((visibility("default")))
#define STORMRT_TEXT_OF(macro) #macro
#define STORMRT_TEXT(macro) STORMRT_TEXT_OF(macro)

static_assert(NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 3),
              "TensorRT 10.3 or later is needed");

namespace stormrt {
namespace {

constexpr auto kOperatorCount = static_cast<int32_t>(std::size(kOperators));

//! Creators live as long as the process: the library is never unmapped (-z nodelete).
struct Creators {
    Creators() noexcept {
        for (int32_t i = 0; i < kOperatorCount; ++i) {
            static_assert(sizeof(storage[0]) >= sizeof(Creator));
            interfaces[i] = new (&storage[i]) Creator(*kOperators[i]);
        }
    }

    std::aligned_storage_t<sizeof(Creator), alignof(Creator)> storage[kOperatorCount];
    nvinfer1::IPluginCreatorInterface* interfaces[kOperatorCount];
};

Creators& creators() noexcept {
    static Creators instance;
    return instance;
}

Operator const* findOperator(char const* name) noexcept {
    for (Operator const* op : kOperators) {
        if (name != nullptr && std::strcmp(op->contract.name, name) == 0) {
            return op;
        }
    }
    return nullptr;
}

//! Checks a call from C against its operator's contract; null, and why, where it does not fit.
Operator const* check(StormrtCall const& call, Sizes& sizes, Message& reason) noexcept {
    Operator const* const op = findOperator(call.op);
    if (op == nullptr) {
        reason.set("this library has no operator '%.64s'", call.op == nullptr ? "" : call.op);
        return nullptr;
    }
    Contract const& contract = op->contract;
    if (call.input_count != contract.input_count || call.output_count != contract.output_count) {
        reason.set("%d inputs and %d outputs, expected %d and %d", call.input_count,
                   call.output_count, contract.input_count, contract.output_count);
        return nullptr;
    }
    auto const shapeOf = [](StormrtTensor const& tensor) noexcept {
        Shape shape{tensor.rank, {}};
        std::copy(std::begin(tensor.extents), std::end(tensor.extents), shape.extents);
        return shape;
    };
    Shape shapes[kMaxTensors]{};
    std::transform(call.inputs, call.inputs + call.input_count, shapes, shapeOf);
    if (!op->check(shapes, call.input_count, static_cast<TensorType>(call.io_type), sizes,
                   reason)) {
        return nullptr;
    }
    for (int32_t i = 0; i < call.output_count; ++i) {
        Shape const expected = outputShape(contract, i, sizes);
        Shape const found = shapeOf(call.outputs[i]);
        if (found.rank != expected.rank ||
            !std::equal(expected.extents, expected.extents + expected.rank, found.extents)) {
            reason.set("output '%s' has the shape %s, expected %s", contract.output(i).name,
                       shapeText(found).text(), shapeText(expected).text());
            return nullptr;
        }
    }
    return op;
}

void tell(char const* reason, char* message, int64_t size) noexcept {
    if (message != nullptr && size > 0) {
        std::snprintf(message, static_cast<std::size_t>(size), "%s", reason);
    }
}

}  // namespace
}  // namespace stormrt

//! What TensorRT's loadLibrary looks for.
STORMRT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept {
    count = stormrt::kOperatorCount;
    return stormrt::creators().interfaces;
}

//! What TensorRT's loadLibrary calls, if it is there, before getCreators.
STORMRT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept {
    stormrt::setFinder(finder);
}

//! getCreators and setLoggerFinder under names that no other plugin library has: the autoload
//! library is linked to these, and dynamic linking goes by name.
STORMRT_EXPORT nvinfer1::IPluginCreatorInterface* const* stormrt_get_creators(
    int32_t& count) noexcept {
    count = stormrt::kOperatorCount;
    return stormrt::creators().interfaces;
}

STORMRT_EXPORT void stormrt_set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
    stormrt::setFinder(finder);
}

STORMRT_EXPORT int32_t stormrt_abi_version() { return STORMRT_ABI_VERSION; }

STORMRT_EXPORT char const* stormrt_build_info() {
    return "{\"abi\": " STORMRT_TEXT(STORMRT_ABI_VERSION)
      ", \"tensorrt_headers\": \"" STORMRT_TEXT(NV_TENSORRT_MAJOR) "." STORMRT_TEXT(
          NV_TENSORRT_MINOR) "." STORMRT_TEXT(NV_TENSORRT_PATCH)
      "\", \"cuda\": " STORMRT_TEXT(CUDART_VERSION) ", \"plugins\": " STORMRT_PLUGINS_JSON "}";
}

STORMRT_EXPORT int32_t stormrt_launch(StormrtCall const* call, char* message,
                                      int64_t message_size) {
    stormrt::Sizes sizes{};
    stormrt::Message reason;
    stormrt::Operator const* const op = stormrt::check(*call, sizes, reason);
    if (op == nullptr) {
        stormrt::tell(reason.text(), message, message_size);
        return -1;
    }
    void const* inputs[stormrt::kMaxTensors]{};
    void* outputs[stormrt::kMaxTensors]{};
    for (int32_t i = 0; i < call->input_count; ++i) {
        inputs[i] = call->inputs[i].data;
    }
    for (int32_t i = 0; i < call->output_count; ++i) {
        outputs[i] = call->outputs[i].data;
    }
    cudaError_t const status =
        op->launch({sizes, inputs, outputs, call->tactic, static_cast<cudaStream_t>(call->stream)});
    if (status != cudaSuccess) {
        stormrt::tell(cudaGetErrorString(status), message, message_size);
    }
    return static_cast<int32_t>(status);
}

STORMRT_EXPORT int32_t stormrt_count_tactics(StormrtCall const* call, char* message,
                                             int64_t message_size) {
    stormrt::Sizes sizes{};
    stormrt::Message reason;
    stormrt::Operator const* const op = stormrt::check(*call, sizes, reason);
    if (op == nullptr) {
        stormrt::tell(reason.text(), message, message_size);
        return -1;
    }
    return op->countTactics(sizes);
}

// SPDX-License-Identifier: Apache-2.0
// The plugin host as a library, for a process that has memory, streams and graphs of its own.
// Functions return null or another number than 0 where something fails, and say what on stderr.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <iterator>

#include "plugin_host.h"

namespace {

using namespace plugin_host;

constexpr int32_t kMaxRank = 8;

//! A tensor's type (nvinfer1::DataType's number) and extents, at least and at most.
struct Extents {
    int32_t type;
    int32_t rank;
    int64_t least[kMaxRank];
    int64_t most[kMaxRank];
};

Dims dims(int32_t rank, int64_t const* extents) {
    Dims result{};
    result.nbDims = rank;
    std::copy_n(extents, rank, result.d);
    return result;
}

PluginTensorDesc describe(Extents const& tensor, Dims const& extents) {
    PluginTensorDesc desc{};
    desc.dims = extents;
    desc.type = static_cast<DataType>(tensor.type);
    desc.format = TensorFormat::kLINEAR;
    return desc;
}

//! An operator as an engine holds it.
struct Plugin {
    std::unique_ptr<IPluginV3> restored;
    int32_t inputs;
};

//! The same in an execution context.
struct Session {
    std::unique_ptr<IPluginV3> plugin;
    int32_t inputs;
    std::vector<PluginTensorDesc> descs;
};

template <typename Work>
auto told(Work const& work, decltype(work()) failed) noexcept -> decltype(work()) {
    try {
        return work();
    } catch (std::exception const& error) {
        std::cerr << "plugin host: " << error.what() << "\n";
        return failed;
    }
}

}  // namespace

extern "C" {

Plugin* plugin_host_open(char const* core, char const* op, Extents const* tensors, int32_t inputs,
                         int32_t count) {
    return told(
        [&]() -> Plugin* {
            std::vector<DynamicPluginTensorDesc> dynamic;
            for (Extents const* tensor = tensors; tensor != tensors + count; ++tensor) {
                Dims const least = dims(tensor->rank, tensor->least);
                Dims const most = dims(tensor->rank, tensor->most);
                Dims open = most;  // what may vary is -1 to the builder
                for (int32_t i = 0; i < open.nbDims; ++i) {
                    open.d[i] = least.d[i] == most.d[i] ? most.d[i] : -1;
                }
                dynamic.push_back({describe(*tensor, open), least, most, most});
            }
            IPluginCreatorV3One& creator = findCreator(core, op);
            auto const built = build(creator, op, dynamic, inputs);
            return new Plugin{restore(creator, op, *built), inputs};
        },
        nullptr);
}

Session* plugin_host_attach(Plugin const* plugin) {
    return told(
        [&]() -> Session* { return new Session{attach(*plugin->restored), plugin->inputs, {}}; },
        nullptr);
}

//! Tells a session its shapes, ``most`` of each tensor, and a tactic.
int32_t plugin_host_shape(Session* session, Extents const* tensors, int32_t count, int32_t tactic) {
    return told(
        [&]() -> int32_t {
            session->descs.clear();
            std::transform(tensors, tensors + count, std::back_inserter(session->descs),
                           [](Extents const& tensor) {
                               return describe(tensor, dims(tensor.rank, tensor.most));
                           });
            auto& runtime = runtimeOf(*session->plugin);
            check(runtime.setTactic(tactic) == 0, "setTactic");
            check(runtime.onShapeChange(session->descs.data(), session->inputs,
                                        session->descs.data() + session->inputs,
                                        count - session->inputs) == 0,
                  "onShapeChange");
            return 0;
        },
        1);
}

int32_t plugin_host_enqueue(Session* session, void const* const* inputs, void* const* outputs,
                            cudaStream_t stream) {
    return told(
        [&]() -> int32_t {
            check(!session->descs.empty(), "enqueued before shapes were told");
            return runtimeOf(*session->plugin)
                .enqueue(session->descs.data(), session->descs.data() + session->inputs, inputs,
                         outputs, nullptr, stream);
        },
        1);
}

void plugin_host_detach(Session* session) { delete session; }

void plugin_host_close(Plugin* plugin) { delete plugin; }

}  // extern "C"

// SPDX-License-Identifier: Apache-2.0
// Runs one plugin on a GPU in the order in which TensorRT would: created for a build, serialised,
// created again from what was serialised, attached to a context, told its tactic and its shapes,
// enqueued; then once more through a CUDA graph.
//
//     gpu_host CORE OP TACTIC INPUTS tensor...
//
// A tensor is TYPE/EXTENTS/FILE, TYPE being nvinfer1::DataType's number; inputs first, then
// outputs. Prints "tactics N": how many the plugin offers for these shapes. TACTIC -1 stops after
// that. Memory of outputs is filled with NaNs before every run, and bytes behind them must not
// change.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "plugin_host.h"

namespace {

using namespace plugin_host;

constexpr std::size_t kGuardBytes = 256;
constexpr unsigned char kNaNByte = 0xFF;

using plugin_host::check;

void check(cudaError_t status) { check(status == cudaSuccess, cudaGetErrorString(status)); }

struct Tensor {
    PluginTensorDesc desc{};
    std::string file;
    std::size_t bytes{};
    unsigned char* memory{};

    explicit Tensor(std::string const& text) {
        std::istringstream stream(text);
        std::string type;
        std::string extents;
        std::getline(stream, type, '/');
        std::getline(stream, extents, '/');
        std::getline(stream, file);
        desc.type = static_cast<DataType>(std::stoi(type));
        desc.format = TensorFormat::kLINEAR;
        bytes = desc.type == DataType::kHALF ? 2 : 4;
        std::istringstream numbers(extents);
        for (std::string number; std::getline(numbers, number, ',');) {
            desc.dims.d[desc.dims.nbDims++] = std::stoll(number);
            bytes *= static_cast<std::size_t>(std::stoll(number));
        }
        check(cudaMalloc(reinterpret_cast<void**>(&memory), bytes + kGuardBytes));
    }

    void read() {
        std::vector<char> data(bytes);
        std::ifstream stream(file, std::ios::binary);
        stream.read(data.data(), static_cast<std::streamsize>(bytes));
        check(static_cast<bool>(stream), "cannot read " + file);
        check(cudaMemcpy(memory, data.data(), bytes, cudaMemcpyHostToDevice));
    }

    void poison() { check(cudaMemset(memory, kNaNByte, bytes + kGuardBytes)); }

    std::vector<char> fetch() const {
        std::vector<char> data(bytes + kGuardBytes);
        check(cudaMemcpy(data.data(), memory, data.size(), cudaMemcpyDeviceToHost));
        check(std::all_of(data.begin() + static_cast<std::ptrdiff_t>(bytes), data.end(),
                          [](char byte) { return static_cast<unsigned char>(byte) == kNaNByte; }),
              "memory behind an output was written");
        data.resize(bytes);
        return data;
    }
};

void run(int argc, char** argv) {
    check(argc > 5, "gpu_host CORE OP TACTIC INPUTS tensor...");
    std::string const op = argv[2];
    int32_t const tactic = std::stoi(argv[3]);
    auto const input_count = std::stoi(argv[4]);
    std::vector<Tensor> tensors(argv + 5, argv + argc);
    auto const output_count = static_cast<int32_t>(tensors.size()) - input_count;

    IPluginCreatorV3One& creator = findCreator(argv[1], op);
    std::vector<DynamicPluginTensorDesc> dynamic;
    std::vector<PluginTensorDesc> descs;
    for (Tensor const& tensor : tensors) {
        descs.push_back(tensor.desc);
        dynamic.push_back({tensor.desc, tensor.desc.dims, tensor.desc.dims, tensor.desc.dims});
    }
    auto const built = build(creator, op, dynamic, input_count);
    std::cout << "tactics "
              << capability<IPluginV3OneBuild>(*built, PluginCapabilityType::kBUILD).getNbTactics()
              << "\n";
    if (tactic < 0) {
        return;
    }

    auto const stored = restore(creator, op, *built);
    auto const attached = attach(*stored);
    IPluginV3OneRuntime& runtime = runtimeOf(*attached);
    check(runtime.setTactic(tactic) == 0, "setTactic");
    check(runtime.onShapeChange(descs.data(), input_count, descs.data() + input_count,
                                output_count) == 0,
          "onShapeChange");

    std::vector<void const*> inputs;
    std::vector<void*> outputs;
    for (int32_t i = 0; i < input_count + output_count; ++i) {
        Tensor& tensor = tensors[static_cast<std::size_t>(i)];
        if (i < input_count) {
            tensor.read();
            inputs.push_back(tensor.memory);
        } else {
            outputs.push_back(tensor.memory);
        }
    }
    cudaStream_t stream{};
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    auto const enqueue = [&] {
        check(runtime.enqueue(descs.data(), descs.data() + input_count, inputs.data(),
                              outputs.data(), nullptr, stream) == 0,
              "enqueue");
    };
    auto const results = [&](auto const& work) {
        for (int32_t i = input_count; i < input_count + output_count; ++i) {
            tensors[static_cast<std::size_t>(i)].poison();
        }
        check(cudaDeviceSynchronize());
        work();
        check(cudaStreamSynchronize(stream));
        std::vector<std::vector<char>> data;
        for (int32_t i = input_count; i < input_count + output_count; ++i) {
            data.push_back(tensors[static_cast<std::size_t>(i)].fetch());
        }
        return data;
    };

    auto const first = results(enqueue);
    check(results(enqueue) == first, "a second run gives another result");
    cudaGraph_t graph{};
    cudaGraphExec_t executable{};
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    enqueue();
    check(cudaStreamEndCapture(stream, &graph));
    check(cudaGraphInstantiate(&executable, graph, 0));
    check(results([&] { check(cudaGraphLaunch(executable, stream)); }) == first,
          "a CUDA graph gives another result");

    for (int32_t i = 0; i < output_count; ++i) {
        std::vector<char> const& data = first[static_cast<std::size_t>(i)];
        std::ofstream(tensors[static_cast<std::size_t>(input_count + i)].file, std::ios::binary)
            .write(data.data(), static_cast<std::streamsize>(data.size()));
    }
}

}  // namespace

int main(int argc, char** argv) {
    try {
        run(argc, argv);
    } catch (std::exception const& error) {
        std::cerr << "error: " << error.what() << "\n";
        return 1;
    }
    return 0;
}

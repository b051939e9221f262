// SPDX-License-Identifier: Apache-2.0
#include <initializer_list>

#include "common/operator.h"
#include "selective_scan_2d/kernel.h"
#include "selective_scan_2d_contract.h"

namespace stormrt::selective_scan_2d {
namespace {

constexpr double kMaxElements = 2147483647;

Params paramsOf(Sizes const& sizes) noexcept {
    Params params{};
    params.batch = sizes[Symbol::kB];
    params.channels = sizes[Symbol::kD];
    params.height = sizes[Symbol::kH];
    params.width = sizes[Symbol::kW];
    params.state = sizes[Symbol::kN];
    params.dtype = sizes.io_type == TensorType::kFloat16 ? DType::kFloat16 : DType::kFloat32;
    return params;
}

cudaError_t launchCall(Call const& call) noexcept {
    Params params = paramsOf(call.sizes);
    params.x = call.inputs[Input::kX];
    params.dt = call.inputs[Input::kDt];
    params.b = call.inputs[Input::kB];
    params.c = call.inputs[Input::kC];
    params.a = static_cast<float const*>(call.inputs[Input::kA]);
    params.d = static_cast<float const*>(call.inputs[Input::kD]);
    params.dt_bias = static_cast<float const*>(call.inputs[Input::kDtBias]);
    params.y = call.outputs[Output::kY];
    return launch(params, call.tactic, call.stream);
}

int32_t countTacticsOf(Sizes const& sizes) noexcept { return countTactics(paramsOf(sizes)); }

bool supports(Sizes const& sizes, Message& reason) noexcept {
    if (sizes[Symbol::kN] > kMaxState) {
        return reason.set("a state of %d, the kernel takes up to %d", sizes[Symbol::kN], kMaxState);
    }
    if (sizes[Symbol::kH] > kMaxHeight) {
        return reason.set("maps of %d rows, the kernel takes up to %d", sizes[Symbol::kH],
                          kMaxHeight);
    }
    // A product of five extents may leave 64 bits, so it is formed in floating point.
    double elements = 1;
    for (int32_t const symbol : {Symbol::kB, Symbol::kK, Symbol::kD, Symbol::kH, Symbol::kW}) {
        elements *= sizes[symbol];
    }
    if (elements > kMaxElements) {
        return reason.set("%.0f elements in 'dt', the kernel takes up to 2^31 - 1", elements);
    }
    return true;
}

}  // namespace

Operator const kOperator{kContract, &launchCall, &countTacticsOf, &supports};

}  // namespace stormrt::selective_scan_2d

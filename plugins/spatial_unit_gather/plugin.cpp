// SPDX-License-Identifier: Apache-2.0
#include "common/operator.h"
#include "spatial_unit_gather/kernel.h"
#include "spatial_unit_gather_contract.h"

namespace stormrt::spatial_unit_gather {
namespace {

cudaError_t launchCall(Call const& call) noexcept {
    Params params{};
    params.x = call.inputs[Input::kX];
    params.rows = static_cast<int32_t const*>(call.inputs[Input::kRows]);
    params.cols = static_cast<int32_t const*>(call.inputs[Input::kCols]);
    params.y = call.outputs[Output::kY];
    params.batch = call.sizes[Symbol::kB];
    params.channels = call.sizes[Symbol::kC];
    params.height = call.sizes[Symbol::kH];
    params.width = call.sizes[Symbol::kW];
    params.kept_height = call.sizes[Symbol::kHPrime];
    params.kept_width = call.sizes[Symbol::kWPrime];
    params.element_size = call.sizes.io_type == TensorType::kFloat16 ? 2 : 4;
    return launch(params, call.stream);
}

}  // namespace

// It has no tactics, and no limits but those that its launch checks.
Operator const kOperator{kContract, &launchCall, nullptr, nullptr};

}  // namespace stormrt::spatial_unit_gather

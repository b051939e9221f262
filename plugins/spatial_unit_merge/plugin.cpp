// SPDX-License-Identifier: Apache-2.0
#include "common/operator.h"
#include "spatial_unit_merge/kernel.h"
#include "spatial_unit_merge_contract.h"

namespace stormrt::spatial_unit_merge {
namespace {

cudaError_t launchCall(Call const& call) noexcept {
    Params params{};
    params.x = call.inputs[Input::kX];
    params.row_starts = static_cast<int32_t const*>(call.inputs[Input::kRowStarts]);
    params.col_starts = static_cast<int32_t const*>(call.inputs[Input::kColStarts]);
    params.row_weights = static_cast<float const*>(call.inputs[Input::kRowWeights]);
    params.col_weights = static_cast<float const*>(call.inputs[Input::kColWeights]);
    params.y = call.outputs[Output::kY];
    params.sizes.batch = call.sizes[Symbol::kB];
    params.sizes.channels = call.sizes[Symbol::kC];
    params.sizes.height = call.sizes[Symbol::kH];
    params.sizes.width = call.sizes[Symbol::kW];
    params.sizes.out_height = call.sizes[Symbol::kHPrime];
    params.sizes.out_width = call.sizes[Symbol::kWPrime];
    params.is_half = call.sizes.io_type == TensorType::kFloat16;
    return launch(params, call.stream);
}

}  // namespace

// It has no tactics, and no limits but those that its launch checks.
Operator const kOperator{kContract, &launchCall, nullptr, nullptr};

}  // namespace stormrt::spatial_unit_merge

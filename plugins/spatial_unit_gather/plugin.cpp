// SPDX-License-Identifier: Apache-2.0
#include "common/line_copy.h"
#include "common/operator.h"
#include "spatial_unit_gather_contract.h"

namespace stormrt::spatial_unit_gather {
namespace {

cudaError_t launchCall(Call const& call) noexcept {
    LineCopy copy{};
    copy.x = call.inputs[Input::kX];
    copy.rows = static_cast<int32_t const*>(call.inputs[Input::kRows]);
    copy.cols = static_cast<int32_t const*>(call.inputs[Input::kCols]);
    copy.y = call.outputs[Output::kY];
    copy.sizes.batch = call.sizes[Symbol::kB];
    copy.sizes.channels = call.sizes[Symbol::kC];
    copy.sizes.height = call.sizes[Symbol::kH];
    copy.sizes.width = call.sizes[Symbol::kW];
    copy.sizes.out_height = call.sizes[Symbol::kHPrime];
    copy.sizes.out_width = call.sizes[Symbol::kWPrime];
    copy.element_size = call.sizes.io_type == TensorType::kFloat16 ? 2 : 4;
    return launchLineCopy(copy, call.stream);
}

}  // namespace

// It has no tactics, and no limits but those that its launch checks.
Operator const kOperator{kContract, &launchCall, nullptr, nullptr};

}  // namespace stormrt::spatial_unit_gather

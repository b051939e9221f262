// SPDX-License-Identifier: Apache-2.0
// What an operator adds to its contract: how it runs. All of it is known without TensorRT.
#pragma once

#include <cuda_runtime_api.h>

#include "common/contract.h"
#include "common/message.h"
#include "common/sizes.h"

namespace stormrt {

//! One call on device memory. Sizes and types have been checked against the contract.
struct Call {
    Sizes const& sizes;
    void const* const* inputs;
    void* const* outputs;
    int32_t tactic;  //!< 1 to countTactics(), or 0 for the operator's default
    cudaStream_t stream;
};

struct Operator {
    Contract const& contract;

    //! Enqueues the call: no allocation, no synchronisation.
    cudaError_t (*launch)(Call const& call) noexcept;

    //! Tactics that can run these sizes. Null: the operator has none to choose from.
    int32_t (*count_tactics)(Sizes const& sizes) noexcept;

    //! Limits that the contract cannot say: false, and why. Null: there are none.
    bool (*supports)(Sizes const& sizes, Message& reason) noexcept;

    int32_t countTactics(Sizes const& sizes) const noexcept {
        return count_tactics == nullptr ? 0 : count_tactics(sizes);
    }

    //! Solves the sizes of a call and checks every limit: false, and why.
    bool check(Shape const* inputs, int32_t input_count, TensorType io_type, Sizes& sizes,
               Message& reason) const noexcept {
        return solveSizes(contract, inputs, input_count, io_type, sizes, reason) &&
               (supports == nullptr || supports(sizes, reason));
    }
};

}  // namespace stormrt

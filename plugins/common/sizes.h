// SPDX-License-Identifier: Apache-2.0
// The symbols of a contract, solved from the shapes of one call.
#pragma once

#include <cstdint>

#include "common/contract.h"
#include "common/message.h"

namespace stormrt {

struct Shape {
    int32_t rank;
    int64_t extents[kMaxRank];
};

//! What each symbol stands for in one call, every value from 1 to 2^31 - 1, and the I/O type.
struct Sizes {
    int32_t values[kMaxSymbols];
    TensorType io_type;

    int32_t operator[](int32_t symbol) const noexcept { return values[symbol]; }
};

//! Solves the symbols from the inputs' shapes, as PluginSpec.bind does in Python.
//! Returns false where a count, a rank, an extent or the type does not fit, and says which.
bool solveSizes(Contract const& contract, Shape const* inputs, int32_t input_count,
                TensorType io_type, Sizes& sizes, Message& reason) noexcept;

//! The shape of an output.
Shape outputShape(Contract const& contract, int32_t output, Sizes const& sizes) noexcept;

//! `float32`, as SPECs write it.
char const* typeName(TensorType type) noexcept;

//! `[2, 96, 56, 56]`
Message shapeText(Shape const& shape) noexcept;

//! Whether an I/O type is among those of the contract.
bool isIoType(Contract const& contract, TensorType type) noexcept;

}  // namespace stormrt

// SPDX-License-Identifier: Apache-2.0
// The contract of an operator in C++: what plugins/derive/cpp_header.py writes from its SPEC.
#pragma once

#include <cstdint>

namespace stormrt {

//! Element type of a tensor. kIo is the operator's own choice among Contract::io_types.
enum class TensorType : int32_t { kFloat32 = 0, kFloat16 = 1, kInt32 = 2, kIo = 3 };

constexpr int32_t kMaxRank = 8;
constexpr int32_t kMaxFactors = 3;
constexpr int32_t kMaxTensors = 16;
constexpr int32_t kMaxSymbols = 16;
constexpr int32_t kMaxAttributes = 8;

//! One extent of a shape: a product of symbols, by their positions in Contract::symbols.
struct Extent {
    int32_t count;
    int32_t factors[kMaxFactors];
};

struct TensorContract {
    char const* name;
    TensorType type;
    int32_t rank;
    Extent shape[kMaxRank];
};

struct SymbolContract {
    char const* name;
    int32_t constant;  //!< 0 where the inputs' shapes decide.
};

//! An attribute that every node of the operator carries, and the one value that it may have.
struct AttributeContract {
    char const* name;
    char const* value;
};

struct Contract {
    char const* name;
    char const* version;
    char const* name_space;
    TensorContract const* tensors;  //!< inputs, then outputs
    int32_t input_count;
    int32_t output_count;
    SymbolContract const* symbols;
    int32_t symbol_count;
    TensorType const* io_types;
    int32_t io_type_count;
    AttributeContract const* attributes;
    int32_t attribute_count;
    char const* kernel_revision;  //!< digest of the kernel's sources

    constexpr TensorContract const& output(int32_t index) const noexcept {
        return tensors[input_count + index];
    }
};

}  // namespace stormrt

// SPDX-License-Identifier: Apache-2.0
#include "common/sizes.h"

#include <initializer_list>
#include <limits>

namespace stormrt {
namespace {

constexpr int64_t kMaxExtent = std::numeric_limits<int32_t>::max();

//! Solves or checks one extent: a product of symbols of which at most one is not known yet.
bool bindExtent(TensorContract const& tensor, int32_t axis, int64_t size, Sizes& sizes,
                Message& reason) noexcept {
    Extent const& extent = tensor.shape[axis];
    int64_t known = 1;
    int32_t unknown = -1;
    int32_t unknown_count = 0;
    for (int32_t i = 0; i < extent.count; ++i) {
        int32_t const symbol = extent.factors[i];
        if (sizes.values[symbol] > 0) {
            known *= sizes.values[symbol];
            if (known > kMaxExtent) {
                break;
            }
        } else {
            unknown = symbol;
            ++unknown_count;
        }
    }
    if (unknown_count == 0 && known == size) {
        return true;
    }
    if (unknown_count == 1 && size % known == 0) {
        sizes.values[unknown] = static_cast<int32_t>(size / known);
        return true;
    }
    return reason.set("input '%s' does not fit the others: axis %d is %lld, not %s%lld",
                      tensor.name, axis, static_cast<long long>(size),
                      unknown_count == 0 ? "" : "a multiple of ", static_cast<long long>(known));
}

}  // namespace

bool solveSizes(Contract const& contract, Shape const* inputs, int32_t input_count,
                TensorType io_type, Sizes& sizes, Message& reason) noexcept {
    if (input_count != contract.input_count) {
        return reason.set("%d inputs, expected %d", input_count, contract.input_count);
    }
    if (!isIoType(contract, io_type)) {
        return reason.set("the maps cannot be %s", typeName(io_type));
    }
    sizes.io_type = io_type;
    for (int32_t s = 0; s < contract.symbol_count; ++s) {
        sizes.values[s] = contract.symbols[s].constant;
    }
    for (int32_t i = 0; i < input_count; ++i) {
        TensorContract const& tensor = contract.tensors[i];
        if (inputs[i].rank != tensor.rank) {
            return reason.set("input '%s' has rank %d, expected %d", tensor.name, inputs[i].rank,
                              tensor.rank);
        }
        for (int32_t axis = 0; axis < tensor.rank; ++axis) {
            int64_t const size = inputs[i].extents[axis];
            if (size < 1 || size > kMaxExtent) {
                return reason.set("input '%s' has the shape %s: every extent is from 1 to 2^31 - 1",
                                  tensor.name, shapeText(inputs[i]).text());
            }
        }
    }
    // Plain symbols first: once they are known, the products give the others.
    for (bool const products : {false, true}) {
        for (int32_t i = 0; i < input_count; ++i) {
            TensorContract const& tensor = contract.tensors[i];
            for (int32_t axis = 0; axis < tensor.rank; ++axis) {
                if ((tensor.shape[axis].count > 1) == products &&
                    !bindExtent(tensor, axis, inputs[i].extents[axis], sizes, reason)) {
                    return false;
                }
            }
        }
    }
    return true;
}

Shape outputShape(Contract const& contract, int32_t output, Sizes const& sizes) noexcept {
    TensorContract const& tensor = contract.output(output);
    Shape shape{};
    shape.rank = tensor.rank;
    for (int32_t axis = 0; axis < tensor.rank; ++axis) {
        shape.extents[axis] = 1;
        for (int32_t i = 0; i < tensor.shape[axis].count; ++i) {
            shape.extents[axis] *= sizes.values[tensor.shape[axis].factors[i]];
        }
    }
    return shape;
}

char const* typeName(TensorType type) noexcept {
    switch (type) {
        case TensorType::kFloat32:
            return "float32";
        case TensorType::kFloat16:
            return "float16";
        case TensorType::kInt32:
            return "int32";
        case TensorType::kIo:
            return "of that type";
    }
    return "of that type";
}

Message shapeText(Shape const& shape) noexcept {
    char text[256];
    std::size_t length = 0;
    for (int32_t axis = 0; axis < shape.rank && axis < kMaxRank && length < sizeof(text); ++axis) {
        int const written =
            std::snprintf(text + length, sizeof(text) - length, axis ? ", %lld" : "%lld",
                          static_cast<long long>(shape.extents[axis]));
        length += static_cast<std::size_t>(written);
    }
    text[length < sizeof(text) ? length : sizeof(text) - 1] = '\0';
    Message message;
    message.set("[%s]", text);
    return message;
}

bool isIoType(Contract const& contract, TensorType type) noexcept {
    for (int32_t i = 0; i < contract.io_type_count; ++i) {
        if (contract.io_types[i] == type) {
            return true;
        }
    }
    return false;
}

}  // namespace stormrt

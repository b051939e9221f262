// SPDX-License-Identifier: Apache-2.0
// The contract's attributes as TensorRT's plugin fields.
#pragma once

#include <NvInferRuntime.h>

#include "common/contract.h"
#include "common/message.h"

namespace stormrt {

//! Fills kMaxAttributes fields, and the collection that points to them, with the contract's values.
void describeFields(Contract const& contract, nvinfer1::PluginField* fields,
                    nvinfer1::PluginFieldCollection& collection) noexcept;

//! Checks fields that somebody else made: false, and why, where one is unknown, given twice, of the
//! wrong type or of another value, or where all are required and one is missing.
bool checkFields(Contract const& contract, nvinfer1::PluginFieldCollection const* fields,
                 bool require_all, Message& reason) noexcept;

}  // namespace stormrt

// SPDX-License-Identifier: Apache-2.0
#include "common/fields.h"

#include <algorithm>
#include <cstring>

namespace stormrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

int32_t findAttribute(Contract const& contract, char const* name) noexcept {
    for (int32_t i = 0; i < contract.attribute_count; ++i) {
        if (std::strcmp(contract.attributes[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

bool checkValue(AttributeContract const& attribute, PluginField const& field,
                Message& reason) noexcept {
    if (field.type != PluginFieldType::kCHAR) {
        return reason.set("field '%s' has the type %d, expected %d (a string)", attribute.name,
                          static_cast<int>(field.type), static_cast<int>(PluginFieldType::kCHAR));
    }
    if (field.length < 0 || (field.length > 0 && field.data == nullptr)) {
        return reason.set("field '%s' has no data", attribute.name);
    }
    auto const* const text = static_cast<char const*>(field.data);
    int32_t length = field.length;
    // Some hosts count the terminating zero, others do not.
    while (length > 0 && text[length - 1] == '\0') {
        --length;
    }
    auto const expected = static_cast<int32_t>(std::strlen(attribute.value));
    if (length != expected ||
        std::memcmp(text, attribute.value, static_cast<std::size_t>(expected)) != 0) {
        return reason.set("field '%s' is '%.*s', expected '%s'", attribute.name,
                          std::min(length, int32_t{64}), text == nullptr ? "" : text,
                          attribute.value);
    }
    return true;
}

}  // namespace

void describeFields(Contract const& contract, PluginField* fields,
                    nvinfer1::PluginFieldCollection& collection) noexcept {
    for (int32_t i = 0; i < contract.attribute_count; ++i) {
        AttributeContract const& attribute = contract.attributes[i];
        fields[i] = PluginField(attribute.name, attribute.value, PluginFieldType::kCHAR,
                                static_cast<int32_t>(std::strlen(attribute.value)));
    }
    collection.nbFields = contract.attribute_count;
    collection.fields = fields;
}

bool checkFields(Contract const& contract, nvinfer1::PluginFieldCollection const* fields,
                 bool require_all, Message& reason) noexcept {
    bool seen[kMaxAttributes]{};
    int32_t const count = fields == nullptr ? 0 : fields->nbFields;
    if (count < 0 || (count > 0 && fields->fields == nullptr)) {
        return reason.set("the collection of fields is malformed");
    }
    for (int32_t i = 0; i < count; ++i) {
        PluginField const& field = fields->fields[i];
        if (field.name == nullptr) {
            return reason.set("field %d has no name", i);
        }
        int32_t const index = findAttribute(contract, field.name);
        if (index < 0) {
            return reason.set("there is no field '%.64s'", field.name);
        }
        if (seen[index]) {
            return reason.set("field '%s' is given twice", field.name);
        }
        seen[index] = true;
        if (!checkValue(contract.attributes[index], field, reason)) {
            return false;
        }
    }
    for (int32_t i = 0; require_all && i < contract.attribute_count; ++i) {
        if (!seen[i]) {
            return reason.set("field '%s' is missing", contract.attributes[i].name);
        }
    }
    return true;
}

}  // namespace stormrt

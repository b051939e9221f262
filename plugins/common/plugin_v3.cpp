// SPDX-License-Identifier: Apache-2.0
#include "common/plugin_v3.h"

#include <algorithm>
#include <new>

#include "common/fields.h"
#include "common/logging.h"

namespace stormrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IDimensionExpr;
using nvinfer1::IExprBuilder;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr int32_t kSuccess = 0;
constexpr int32_t kFailure = 1;

bool toTensorType(DataType type, TensorType& result) noexcept {
    switch (type) {
        case DataType::kFLOAT:
            result = TensorType::kFloat32;
            return true;
        case DataType::kHALF:
            result = TensorType::kFloat16;
            return true;
        case DataType::kINT32:
            result = TensorType::kInt32;
            return true;
        default:
            return false;
    }
}

DataType toDataType(TensorType type) noexcept {
    switch (type) {
        case TensorType::kFloat16:
            return DataType::kHALF;
        case TensorType::kInt32:
            return DataType::kINT32;
        default:
            return DataType::kFLOAT;
    }
}

//! The tensor that decides the I/O type: the first input that is declared with it.
int32_t firstIoInput(Contract const& contract) noexcept {
    for (int32_t i = 0; i < contract.input_count; ++i) {
        if (contract.tensors[i].type == TensorType::kIo) {
            return i;
        }
    }
    return -1;
}

//! Whether one tensor's type is as declared, given the type that the first I/O tensor has.
bool fits(Contract const& contract, int32_t position, DataType type, DataType io_type) noexcept {
    TensorType const declared = contract.tensors[position].type;
    TensorType found{};
    if (!toTensorType(type, found)) {
        return false;
    }
    if (declared != TensorType::kIo) {
        return found == declared;
    }
    return type == io_type && isIoType(contract, found);
}

Shape toShape(nvinfer1::Dims const& dims) noexcept {
    Shape shape{};
    shape.rank = dims.nbDims;
    for (int32_t i = 0; i < std::min(dims.nbDims, kMaxRank); ++i) {
        shape.extents[i] = dims.d[i];
    }
    return shape;
}

bool isFixed(nvinfer1::Dims const& dims) noexcept {
    return std::all_of(dims.d, dims.d + std::max(dims.nbDims, 0),
                       [](int64_t extent) { return extent >= 0; });
}

//! Looks for the inputs' extent that gives a symbol: itself, or a product of which all else is
//! constant. Null where no input has it.
IDimensionExpr const* symbolExpression(Contract const& contract, int32_t symbol,
                                       DimsExprs const* inputs,
                                       IExprBuilder& expressions) noexcept {
    if (contract.symbols[symbol].constant > 0) {
        return expressions.constant(contract.symbols[symbol].constant);
    }
    for (int32_t const factors : {1, 2}) {
        for (int32_t i = 0; i < contract.input_count; ++i) {
            TensorContract const& tensor = contract.tensors[i];
            for (int32_t axis = 0; axis < tensor.rank; ++axis) {
                Extent const& extent = tensor.shape[axis];
                if (extent.count != factors) {
                    continue;
                }
                if (factors == 1 && extent.factors[0] == symbol) {
                    return inputs[i].d[axis];
                }
                for (int32_t f = 0; factors == 2 && f < 2; ++f) {
                    int32_t const other = contract.symbols[extent.factors[1 - f]].constant;
                    if (extent.factors[f] == symbol && other > 0) {
                        return expressions.operation(DimensionOperation::kFLOOR_DIV,
                                                     *inputs[i].d[axis],
                                                     *expressions.constant(other));
                    }
                }
            }
        }
    }
    return nullptr;
}

IDimensionExpr const* extentExpression(Contract const& contract, Extent const& extent,
                                       DimsExprs const* inputs,
                                       IExprBuilder& expressions) noexcept {
    IDimensionExpr const* product = nullptr;
    for (int32_t i = 0; i < extent.count; ++i) {
        IDimensionExpr const* const factor =
            symbolExpression(contract, extent.factors[i], inputs, expressions);
        if (factor == nullptr) {
            return nullptr;
        }
        product = product == nullptr
                      ? factor
                      : expressions.operation(DimensionOperation::kPROD, *product, *factor);
        if (product == nullptr) {
            return nullptr;
        }
    }
    return product;
}

}  // namespace

Plugin::Plugin(Operator const& op) noexcept : op_(op) {
    describeFields(contract(), fields_, field_collection_);
    // TensorRT adds shapes and formats itself. The kernels' sources and the compiler are what else
    // a measured time depends on.
    timing_cache_id_.set("%s/%s/%s/cuda%d", contract().name, contract().version,
                         contract().kernel_revision, CUDART_VERSION);
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
    auto* const copy = new (std::nothrow) Plugin(op_);
    if (copy == nullptr) {
        log(Severity::kERROR, contract().name, "out of memory");
        return nullptr;
    }
    copy->tactic_count_ = tactic_count_;
    copy->tactic_ = tactic_;
    return copy;
}

char const* Plugin::getPluginName() const noexcept { return contract().name; }

char const* Plugin::getPluginVersion() const noexcept { return contract().version; }

char const* Plugin::getPluginNamespace() const noexcept { return contract().name_space; }

int32_t Plugin::getNbOutputs() const noexcept { return contract().output_count; }

bool Plugin::supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors,
                                       int32_t input_count, int32_t output_count) noexcept {
    if (input_count != contract().input_count || output_count != contract().output_count ||
        position < 0 || position >= input_count + output_count) {
        return false;
    }
    // Only tensors up to `position` may be looked at; the I/O type is decided by the first of them.
    int32_t const first = std::min(std::max(firstIoInput(contract()), 0), position);
    PluginTensorDesc const& desc = tensors[position].desc;
    return desc.format == TensorFormat::kLINEAR &&
           fits(contract(), position, desc.type, tensors[first].desc.type);
}

int32_t Plugin::getOutputDataTypes(DataType* output_types, int32_t output_count,
                                   DataType const* input_types,
                                   int32_t input_count) const noexcept {
    if (input_count != contract().input_count || output_count != contract().output_count) {
        log(Severity::kERROR, contract().name, "%d inputs and %d outputs, expected %d and %d",
            input_count, output_count, contract().input_count, contract().output_count);
        return kFailure;
    }
    DataType const io_type = input_types[std::max(firstIoInput(contract()), 0)];
    for (int32_t i = 0; i < input_count; ++i) {
        if (!fits(contract(), i, input_types[i], io_type)) {
            TensorContract const& tensor = contract().tensors[i];
            TensorType expected = tensor.type;
            if (expected == TensorType::kIo) {
                toTensorType(io_type, expected);
            }
            TensorType found{};
            log(Severity::kERROR, contract().name, "input '%s' has the type %s, expected %s",
                tensor.name, toTensorType(input_types[i], found) ? typeName(found) : "another",
                isIoType(contract(), expected) || tensor.type != TensorType::kIo
                    ? typeName(expected)
                    : "float32 or float16");
            return kFailure;
        }
    }
    for (int32_t i = 0; i < output_count; ++i) {
        TensorType const declared = contract().output(i).type;
        output_types[i] = declared == TensorType::kIo ? io_type : toDataType(declared);
    }
    return kSuccess;
}

int32_t Plugin::getOutputShapes(DimsExprs const* inputs, int32_t input_count,
                                DimsExprs const* /*shape_inputs*/, int32_t shape_input_count,
                                DimsExprs* outputs, int32_t output_count,
                                IExprBuilder& expressions) noexcept {
    if (input_count != contract().input_count || output_count != contract().output_count ||
        shape_input_count != 0) {
        log(Severity::kERROR, contract().name,
            "%d inputs, %d shape inputs and %d outputs, expected %d, 0 and %d", input_count,
            shape_input_count, output_count, contract().input_count, contract().output_count);
        return kFailure;
    }
    // A network whose shapes are all fixed is refused here, when it is parsed, not when it is
    // built.
    Shape shapes[kMaxTensors]{};
    bool constant = true;
    for (int32_t i = 0; i < input_count; ++i) {
        TensorContract const& tensor = contract().tensors[i];
        if (inputs[i].nbDims != tensor.rank) {
            log(Severity::kERROR, contract().name, "input '%s' has rank %d, expected %d",
                tensor.name, inputs[i].nbDims, tensor.rank);
            return kFailure;
        }
        shapes[i].rank = tensor.rank;
        for (int32_t axis = 0; axis < tensor.rank; ++axis) {
            constant = constant && inputs[i].d[axis]->isConstant();
            shapes[i].extents[axis] = inputs[i].d[axis]->getConstantValue();
        }
    }
    Sizes sizes{};
    Message reason;
    if (constant && !op_.check(shapes, input_count, contract().io_types[0], sizes, reason)) {
        log(Severity::kERROR, contract().name, "%s", reason.text());
        return kFailure;
    }
    for (int32_t i = 0; i < output_count; ++i) {
        TensorContract const& tensor = contract().output(i);
        outputs[i].nbDims = tensor.rank;
        for (int32_t axis = 0; axis < tensor.rank; ++axis) {
            outputs[i].d[axis] =
                extentExpression(contract(), tensor.shape[axis], inputs, expressions);
            if (outputs[i].d[axis] == nullptr) {
                log(Severity::kERROR, contract().name, "no expression for axis %d of output '%s'",
                    axis, tensor.name);
                return kFailure;
            }
        }
    }
    return kSuccess;
}

int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const* inputs, int32_t input_count,
                                DynamicPluginTensorDesc const* /*outputs*/,
                                int32_t /*output_count*/) noexcept {
    if (input_count != contract().input_count) {
        log(Severity::kERROR, contract().name, "%d inputs, expected %d", input_count,
            contract().input_count);
        return kFailure;
    }
    // An engine keeps one tactic for every shape of its profile: those that the whole range can
    // run.
    tactic_count_ = 0;
    for (auto const bound : {&DynamicPluginTensorDesc::min, &DynamicPluginTensorDesc::opt,
                             &DynamicPluginTensorDesc::max}) {
        PluginTensorDesc descs[kMaxTensors]{};
        for (int32_t i = 0; i < input_count; ++i) {
            descs[i] = inputs[i].desc;
            // A shape that is fixed has no profile to take bounds from.
            if (!isFixed(inputs[i].desc.dims)) {
                descs[i].dims = inputs[i].*bound;
            }
        }
        Sizes sizes{};
        Message reason;
        if (!sizesOf(descs, input_count, sizes, reason)) {
            log(Severity::kERROR, contract().name, "%s", reason.text());
            return kFailure;
        }
        int32_t const count = op_.countTactics(sizes);
        tactic_count_ =
            bound == &DynamicPluginTensorDesc::min ? count : std::min(tactic_count_, count);
    }
    return kSuccess;
}

std::size_t Plugin::getWorkspaceSize(DynamicPluginTensorDesc const* /*inputs*/,
                                     int32_t /*input_count*/,
                                     DynamicPluginTensorDesc const* /*outputs*/,
                                     int32_t /*output_count*/) const noexcept {
    return 0;
}

int32_t Plugin::getNbTactics() noexcept { return tactic_count_; }

int32_t Plugin::getValidTactics(int32_t* tactics, int32_t count) noexcept {
    if (count != tactic_count_) {
        log(Severity::kERROR, contract().name, "asked for %d tactics, there are %d", count,
            tactic_count_);
        return kFailure;
    }
    for (int32_t i = 0; i < count; ++i) {
        tactics[i] = i + 1;
    }
    return kSuccess;
}

char const* Plugin::getTimingCacheID() noexcept { return timing_cache_id_.text(); }

char const* Plugin::getMetadataString() noexcept { return timing_cache_id_.text(); }

int32_t Plugin::setTactic(int32_t tactic) noexcept {
    if (tactic < 0) {
        log(Severity::kERROR, contract().name, "tactic %d does not exist", tactic);
        return kFailure;
    }
    tactic_ = tactic;
    return kSuccess;
}

bool Plugin::sizesOf(PluginTensorDesc const* inputs, int32_t input_count, Sizes& sizes,
                     Message& reason) const noexcept {
    if (input_count != contract().input_count) {
        return reason.set("%d inputs, expected %d", input_count, contract().input_count);
    }
    DataType const io_type = inputs[std::max(firstIoInput(contract()), 0)].type;
    Shape shapes[kMaxTensors]{};
    for (int32_t i = 0; i < input_count; ++i) {
        if (inputs[i].format != TensorFormat::kLINEAR ||
            !fits(contract(), i, inputs[i].type, io_type)) {
            return reason.set("input '%s' has a type or a format that was not offered",
                              contract().tensors[i].name);
        }
        shapes[i] = toShape(inputs[i].dims);
    }
    TensorType type = contract().io_types[0];
    if (firstIoInput(contract()) >= 0) {
        toTensorType(io_type, type);
    }
    return op_.check(shapes, input_count, type, sizes, reason);
}

int32_t Plugin::onShapeChange(PluginTensorDesc const* inputs, int32_t input_count,
                              PluginTensorDesc const* outputs, int32_t output_count) noexcept {
    Sizes sizes{};
    Message reason;
    if (!sizesOf(inputs, input_count, sizes, reason)) {
        log(Severity::kERROR, contract().name, "%s", reason.text());
        return kFailure;
    }
    if (output_count != contract().output_count) {
        log(Severity::kERROR, contract().name, "%d outputs, expected %d", output_count,
            contract().output_count);
        return kFailure;
    }
    for (int32_t i = 0; i < output_count; ++i) {
        Shape const expected = outputShape(contract(), i, sizes);
        Shape const found = toShape(outputs[i].dims);
        if (found.rank != expected.rank ||
            !std::equal(expected.extents, expected.extents + expected.rank, found.extents)) {
            log(Severity::kERROR, contract().name, "output '%s' has the shape %s, expected %s",
                contract().output(i).name, shapeText(found).text(), shapeText(expected).text());
            return kFailure;
        }
    }
    return kSuccess;
}

int32_t Plugin::enqueue(PluginTensorDesc const* input_descs,
                        PluginTensorDesc const* /*output_descs*/, void const* const* inputs,
                        void* const* outputs, void* /*workspace*/, cudaStream_t stream) noexcept {
    Sizes sizes{};
    Message reason;
    if (!sizesOf(input_descs, contract().input_count, sizes, reason)) {
        log(Severity::kERROR, contract().name, "%s", reason.text());
        return kFailure;
    }
    cudaError_t const status = op_.launch({sizes, inputs, outputs, tactic_, stream});
    if (status != cudaSuccess) {
        log(Severity::kERROR, contract().name,
            "the kernel was not launched with tactic %d: %s (%s)", tactic_,
            cudaGetErrorName(status), cudaGetErrorString(status));
        return kFailure;
    }
    return kSuccess;
}

nvinfer1::IPluginV3* Plugin::attachToContext(
    nvinfer1::IPluginResourceContext* /*context*/) noexcept {
    return clone();
}

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept {
    return &field_collection_;
}

Creator::Creator(Operator const& op) noexcept : op_(op) {
    describeFields(op_.contract, fields_, field_collection_);
    // Names and types are what a creator tells; values are for those who create.
    for (nvinfer1::PluginField& field : fields_) {
        field.data = nullptr;
        field.length = 0;
    }
}

nvinfer1::IPluginV3* Creator::createPlugin(char const* name,
                                           nvinfer1::PluginFieldCollection const* fields,
                                           nvinfer1::TensorRTPhase phase) noexcept {
    Message reason;
    // While a graph is parsed a node may leave out what its creator was found by. What a plan holds
    // was written by getFieldsToSerialize, so there nothing may be missing.
    if (!checkFields(op_.contract, fields, phase == nvinfer1::TensorRTPhase::kRUNTIME, reason)) {
        log(Severity::kERROR, op_.contract.name, "%s: %s", name == nullptr ? "unnamed" : name,
            reason.text());
        return nullptr;
    }
    auto* const plugin = new (std::nothrow) Plugin(op_);
    if (plugin == nullptr) {
        log(Severity::kERROR, op_.contract.name, "out of memory");
    }
    return plugin;
}

nvinfer1::PluginFieldCollection const* Creator::getFieldNames() noexcept {
    return &field_collection_;
}

char const* Creator::getPluginName() const noexcept { return op_.contract.name; }

char const* Creator::getPluginVersion() const noexcept { return op_.contract.version; }

char const* Creator::getPluginNamespace() const noexcept { return op_.contract.name_space; }

}  // namespace stormrt

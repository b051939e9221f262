// SPDX-License-Identifier: Apache-2.0
// A host without a GPU: asks a plugin library what TensorRT would ask while it builds an engine.
//
//     host CORE [LEAN]
//
// With LEAN (libnvinfer_lean) the library is loaded through that TensorRT's registry, else by
// dlopen. Each line of stdin is a question, answered by lines that end with a single ".". Lines
// that begin with "log" are what the plugin logged. test_contract_in_cpp.py asks and judges.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

// ---- A logger that repeats everything ---------------------------------------------------------

class Logger final : public ILogger {
public:
    void log(Severity severity, char const* text) noexcept override {
        std::cout << "log " << static_cast<int>(severity) << " " << text << "\n";
    }
};

class Finder final : public ILoggerFinder {
public:
    ILogger* findLogger() override { return &logger; }
    Logger logger;
};

// ---- Expressions: symbolic ones know their value too, but do not tell it
// -------------------------

class Expression final : public IDimensionExpr {
public:
    Expression(int64_t value, bool constant) : value(value), impl(value, constant) {
        mImpl = &impl;
    }

    int64_t const value;

private:
    struct Impl final : apiv::VDimensionExpr {
        Impl(int64_t value, bool constant) : value(value), constant(constant) {}
        bool isConstant() const override { return constant; }
        int64_t getConstantValue() const override { return constant ? value : INT64_MIN; }
        bool isSizeTensor() const override { return false; }
        int64_t value;
        bool constant;
    };
    Impl impl;
};

class Expressions final : public IExprBuilder {
public:
    Expressions() { mImpl = &impl; }

    IDimensionExpr const* input(int64_t value, bool constant) { return impl.keep(value, constant); }

private:
    struct Impl final : apiv::VExprBuilder {
        IDimensionExpr const* keep(int64_t value, bool constant) {
            kept.push_back(std::make_unique<Expression>(value, constant));
            return kept.back().get();
        }
        IDimensionExpr const* constant(int64_t value) override { return keep(value, true); }
        IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& first,
                                        IDimensionExpr const& second) override {
            int64_t const a = static_cast<Expression const&>(first).value;
            int64_t const b = static_cast<Expression const&>(second).value;
            bool const constant = first.isConstant() && second.isConstant();
            switch (op) {
                case DimensionOperation::kSUM:
                    return keep(a + b, constant);
                case DimensionOperation::kPROD:
                    return keep(a * b, constant);
                case DimensionOperation::kSUB:
                    return keep(a - b, constant);
                case DimensionOperation::kFLOOR_DIV:
                    return keep(a / b, constant);
                default:
                    return nullptr;
            }
        }
        IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&,
                                                IDimensionExpr const&) override {
            return nullptr;
        }
        std::vector<std::unique_ptr<Expression>> kept;
    };
    Impl impl;
};

// ---- Reading questions --------------------------------------------------------------------------

std::vector<std::string> split(std::string const& text, char separator) {
    std::vector<std::string> parts;
    std::stringstream stream(text);
    for (std::string part; std::getline(stream, part, separator);) {
        parts.push_back(part);
    }
    return parts;
}

//! "2,96,56,56"; "-" is a scalar.
std::vector<int64_t> numbers(std::string const& text) {
    std::vector<int64_t> result;
    if (text != "-") {
        for (std::string const& part : split(text, ',')) {
            result.push_back(std::stoll(part));
        }
    }
    return result;
}

Dims dims(std::string const& text) {
    Dims result{};
    for (int64_t extent : numbers(text)) {
        result.d[result.nbDims++] = extent;
    }
    return result;
}

//! "type/format/extents", such as "1/0/2,96,56,56".
PluginTensorDesc desc(std::string const& text) {
    std::vector<std::string> const parts = split(text, '/');
    PluginTensorDesc result{};
    result.type = static_cast<DataType>(std::stoi(parts.at(0)));
    result.format = static_cast<TensorFormat>(std::stoi(parts.at(1)));
    result.dims = dims(parts.at(2));
    return result;
}

std::vector<PluginTensorDesc> descs(std::istringstream& words, std::size_t count) {
    std::vector<PluginTensorDesc> result;
    std::string word;
    while (result.size() < count && words >> word) {
        result.push_back(desc(word));
    }
    return result;
}

std::string fromHex(std::string const& hex) {
    std::string bytes;
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
        bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    }
    return bytes;
}

std::string toHex(void const* data, int32_t length) {
    std::string text;
    for (int32_t i = 0; i < length; ++i) {
        char byte[3];
        std::snprintf(byte, sizeof(byte), "%02x", static_cast<unsigned char const*>(data)[i]);
        text += byte;
    }
    return text;
}

// ---- The library
// ----------------------------------------------------------------------------------

struct Host {
    std::vector<IPluginCreatorV3One*> creators;

    IPluginCreatorV3One& creator(std::string const& name) const {
        for (IPluginCreatorV3One* c : creators) {
            if (name == c->getPluginName()) {
                return *c;
            }
        }
        throw std::runtime_error("no creator " + name);
    }

    //! A plugin as the builder would have it.
    std::unique_ptr<IPluginV3> make(std::string const& name) const {
        PluginFieldCollection const none{};
        std::unique_ptr<IPluginV3> plugin(
            creator(name).createPlugin(name.c_str(), &none, TensorRTPhase::kBUILD));
        if (plugin == nullptr) {
            throw std::runtime_error("not created: " + name);
        }
        return plugin;
    }
};

IPluginV3OneCore& coreOf(IPluginV3& plugin) {
    return *static_cast<IPluginV3OneCore*>(
        plugin.getCapabilityInterface(PluginCapabilityType::kCORE));
}

IPluginV3OneBuild& buildOf(IPluginV3& plugin) {
    return *static_cast<IPluginV3OneBuild*>(
        plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
}

IPluginV3OneRuntime& runtimeOf(IPluginV3& plugin) {
    return *static_cast<IPluginV3OneRuntime*>(
        plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

void check(bool condition, char const* what) {
    if (!condition) {
        throw std::runtime_error(what);
    }
}

Host load(char const* core, char const* lean, Finder& finder) {
    Host host;
    int32_t count = 0;
    IPluginCreatorInterface* const* list = nullptr;
    IPluginRegistry* registry = nullptr;
    if (lean != nullptr) {
        void* const tensorrt = dlopen(lean, RTLD_NOW | RTLD_LOCAL);
        check(tensorrt != nullptr, "TensorRT does not load");
        auto const getRegistry =
            reinterpret_cast<IPluginRegistry* (*)()>(dlsym(tensorrt, "getPluginRegistry"));
        registry = getRegistry();
        check(registry->loadLibrary(core) != nullptr, "loadLibrary refuses the library");
        // Again: refused, since the plugins are there, and harmless.
        check(registry->loadLibrary(core) == nullptr, "the same library was loaded twice");
        list = registry->getAllCreators(&count);
    }
    void* const library = dlopen(core, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        throw std::runtime_error(dlerror());
    }
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
    if (lean == nullptr) {
        auto const getCreators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(
            dlsym(library, "getCreators"));
        list = getCreators(count);
    }
    for (int32_t i = 0; i < count; ++i) {
        if (std::strcmp(list[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) {
            continue;
        }
        auto* const creator = static_cast<IPluginCreatorV3One*>(list[i]);
        if (std::strcmp(creator->getPluginNamespace(), "stormrt") == 0) {
            host.creators.push_back(creator);
            check(registry == nullptr ||
                      registry->getCreator(creator->getPluginName(), creator->getPluginVersion(),
                                           "stormrt") == creator,
                  "getCreator finds another");
        }
    }
    return host;
}

// ---- Questions
// --------------------------------------------------------------------------------------

void tellFields(PluginFieldCollection const* fields) {
    for (int32_t i = 0; i < fields->nbFields; ++i) {
        PluginField const& f = fields->fields[i];
        std::cout << "field " << f.name << " " << static_cast<int>(f.type) << " "
                  << toHex(f.data, f.length) << "\n";
    }
}

void askCreators(Host const& host) {
    for (IPluginCreatorV3One* c : host.creators) {
        std::cout << "creator " << c->getPluginName() << " " << c->getPluginVersion() << " "
                  << c->getPluginNamespace() << "\n";
        tellFields(c->getFieldNames());
    }
}

//! create NAME PHASE [name:type:hex]...; a hex of "!" is no data, a name of "?" no name. Instead of
//! fields: "@null" (no collection), "@negative" (-1 fields), "@missing" (2 fields, and no array).
void askCreate(Host const& host, std::istringstream& words) {
    std::string name;
    int phase = 0;
    words >> name >> phase;
    std::vector<std::vector<std::string>> texts;
    std::vector<std::string> bytes;
    PluginFieldCollection collection{};
    PluginFieldCollection* given = &collection;
    for (std::string word; words >> word;) {
        if (word == "@null") {
            given = nullptr;
        } else if (word == "@negative") {
            collection.nbFields = -1;
        } else if (word == "@missing") {
            collection.nbFields = 2;
        } else {
            texts.push_back(split(word + (word.back() == ':' ? " " : ""), ':'));
            bytes.push_back(fromHex(texts.back().at(2)));
        }
    }
    std::vector<PluginField> fields;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        bool const none = texts[i][2] == "!";
        fields.emplace_back(texts[i][0] == "?" ? nullptr : texts[i][0].c_str(),
                            none ? nullptr : bytes[i].data(),
                            static_cast<PluginFieldType>(std::stoi(texts[i][1])),
                            none ? 3 : static_cast<int32_t>(bytes[i].size()));
    }
    if (!fields.empty()) {
        collection.nbFields = static_cast<int32_t>(fields.size());
        collection.fields = fields.data();
    }
    IPluginCreatorV3One& creator = host.creator(name);
    std::unique_ptr<IPluginV3> const plugin(
        creator.createPlugin("layer", given, static_cast<TensorRTPhase>(phase)));
    std::cout << (plugin ? "created" : "refused") << "\n";
    if (!plugin) {
        return;
    }
    IPluginV3OneRuntime& runtime = runtimeOf(*plugin);
    tellFields(runtime.getFieldsToSerialize());
    std::cout << "outputs " << buildOf(*plugin).getNbOutputs() << "\n";
    std::cout << "timing " << buildOf(*plugin).getTimingCacheID() << "\n";

    // What is stored in a plan makes the same plugin again; clones are the same and others.
    check(runtime.setTactic(2) == 0, "setTactic");
    std::unique_ptr<IPluginV3> const again(
        creator.createPlugin(nullptr, runtime.getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
    std::unique_ptr<IPluginV3> const clone(plugin->clone());
    std::unique_ptr<IPluginV3> const attached(runtime.attachToContext(nullptr));
    for (IPluginV3* other : {again.get(), clone.get(), attached.get()}) {
        check(other != nullptr && other != plugin.get(), "no other plugin");
        check(coreOf(*other).getPluginName() == name, "another name");
        check(std::strcmp(coreOf(*other).getPluginVersion(), creator.getPluginVersion()) == 0,
              "another version");
        check(std::strcmp(coreOf(*other).getPluginNamespace(), creator.getPluginNamespace()) == 0,
              "another namespace");
        check(std::strcmp(buildOf(*other).getTimingCacheID(),
                          buildOf(*plugin).getTimingCacheID()) == 0,
              "another timing cache ID");
        PluginFieldCollection const* const a = runtime.getFieldsToSerialize();
        PluginFieldCollection const* const b = runtimeOf(*other).getFieldsToSerialize();
        check(a->nbFields == b->nbFields, "another count of fields");
        for (int32_t i = 0; i < a->nbFields; ++i) {
            PluginField const& f = a->fields[i];
            PluginField const& g = b->fields[i];
            check(std::strcmp(f.name, g.name) == 0 && f.type == g.type && f.length == g.length &&
                      std::memcmp(f.data, g.data, static_cast<std::size_t>(f.length)) == 0,
                  "another field");
        }
    }
    std::cout << "roundtrip\n";
}

//! formats NAME INPUTS OUTPUTS POSITION desc...: the tensors up to POSITION. The rest is poisoned.
void askFormats(Host const& host, std::istringstream& words) {
    std::string name;
    int32_t inputs = 0;
    int32_t outputs = 0;
    int32_t position = 0;
    words >> name >> inputs >> outputs >> position;
    std::vector<DynamicPluginTensorDesc> tensors(static_cast<std::size_t>(inputs + outputs));
    std::memset(static_cast<void*>(tensors.data()), 0x7f, tensors.size() * sizeof(tensors[0]));
    std::vector<PluginTensorDesc> const given = descs(words, tensors.size());
    for (std::size_t i = 0; i < given.size(); ++i) {
        tensors[i].desc = given[i];
    }
    std::cout << buildOf(*host.make(name))
                     .supportsFormatCombination(position, tensors.data(), inputs, outputs)
              << "\n";
}

//! types NAME OUTPUTS type...
void askTypes(Host const& host, std::istringstream& words) {
    std::string name;
    int32_t outputs = 0;
    words >> name >> outputs;
    std::vector<DataType> inputs;
    for (int type = 0; words >> type;) {
        inputs.push_back(static_cast<DataType>(type));
    }
    std::vector<DataType> result(static_cast<std::size_t>(outputs));
    int32_t const status = buildOf(*host.make(name))
                               .getOutputDataTypes(result.data(), outputs, inputs.data(),
                                                   static_cast<int32_t>(inputs.size()));
    std::cout << status;
    for (DataType type : result) {
        std::cout << " " << static_cast<int>(type);
    }
    std::cout << "\n";
}

//! shapes NAME OUTPUTS CONSTANT extents...: CONSTANT is 1 where the network's shapes are fixed.
void askShapes(Host const& host, std::istringstream& words) {
    std::string name;
    int32_t outputs = 0;
    bool constant = false;
    words >> name >> outputs >> constant;
    Expressions expressions;
    std::vector<DimsExprs> inputs;
    for (std::string word; words >> word;) {
        DimsExprs shape{};
        for (int64_t extent : numbers(word)) {
            shape.d[shape.nbDims++] = expressions.input(extent, constant);
        }
        inputs.push_back(shape);
    }
    std::vector<DimsExprs> result(static_cast<std::size_t>(outputs));
    int32_t const status = buildOf(*host.make(name))
                               .getOutputShapes(inputs.data(), static_cast<int32_t>(inputs.size()),
                                                nullptr, 0, result.data(), outputs, expressions);
    std::cout << status;
    for (DimsExprs const& shape : result) {
        std::cout << " ";
        for (int32_t i = 0; status == 0 && i < shape.nbDims; ++i) {
            std::cout << (i ? "," : "") << static_cast<Expression const*>(shape.d[i])->value;
        }
    }
    std::cout << "\n";
}

//! onshapechange NAME INPUTS desc...: the outputs' descriptions come last.
void askOnShapeChange(Host const& host, std::istringstream& words) {
    std::string name;
    std::size_t inputs = 0;
    words >> name >> inputs;
    std::vector<PluginTensorDesc> const in = descs(words, inputs);
    std::vector<PluginTensorDesc> const out = descs(words, 16);
    std::unique_ptr<IPluginV3> const plugin = host.make(name);
    std::cout << runtimeOf(*plugin).onShapeChange(in.data(), static_cast<int32_t>(in.size()),
                                                  out.data(), static_cast<int32_t>(out.size()))
              << "\n";
}

//! tactics NAME desc|desc|desc...: for each input its description at the least, the most usual and
//! the largest shape.
void askTactics(Host const& host, std::istringstream& words) {
    std::string name;
    words >> name;
    std::vector<DynamicPluginTensorDesc> inputs;
    for (std::string word; words >> word;) {
        std::vector<std::string> const bounds = split(word, '|');
        DynamicPluginTensorDesc tensor{};
        tensor.desc = desc(bounds.at(1));
        tensor.min = desc(bounds.at(0)).dims;
        tensor.opt = desc(bounds.at(1)).dims;
        tensor.max = desc(bounds.at(2)).dims;
        for (int32_t axis = 0; axis < tensor.desc.dims.nbDims; ++axis) {
            if (tensor.min.d[axis] != tensor.max.d[axis]) {
                tensor.desc.dims.d[axis] = -1;
            }
        }
        inputs.push_back(tensor);
    }
    std::unique_ptr<IPluginV3> const plugin = host.make(name);
    IPluginV3OneBuild& build = buildOf(*plugin);
    DynamicPluginTensorDesc outputs[16]{};
    int32_t const count = static_cast<int32_t>(inputs.size());
    int32_t const status =
        build.configurePlugin(inputs.data(), count, outputs, build.getNbOutputs());
    std::vector<int32_t> tactics(static_cast<std::size_t>(build.getNbTactics()));
    check(build.getValidTactics(tactics.data(), build.getNbTactics()) == 0, "getValidTactics");
    check(build.getWorkspaceSize(inputs.data(), count, outputs, build.getNbOutputs()) == 0,
          "there is a workspace");
    std::cout << status;
    for (int32_t tactic : tactics) {
        std::cout << " " << tactic;
    }
    std::cout << "\n";
}

//! enqueue NAME INPUTS desc...: without memory, for machines without a GPU.
void askEnqueue(Host const& host, std::istringstream& words) {
    std::string name;
    std::size_t inputs = 0;
    words >> name >> inputs;
    std::vector<PluginTensorDesc> const in = descs(words, inputs);
    std::vector<PluginTensorDesc> const out = descs(words, 16);
    void const* sources[16]{};
    void* targets[16]{};
    std::unique_ptr<IPluginV3> const plugin = host.make(name);
    std::cout << runtimeOf(*plugin).enqueue(in.data(), out.data(), sources, targets, nullptr,
                                            nullptr)
              << "\n";
}

void answer(Host const& host, std::string const& line) {
    std::istringstream words(line);
    std::string question;
    words >> question;
    if (question == "creators") {
        askCreators(host);
    } else if (question == "create") {
        askCreate(host, words);
    } else if (question == "formats") {
        askFormats(host, words);
    } else if (question == "types") {
        askTypes(host, words);
    } else if (question == "shapes") {
        askShapes(host, words);
    } else if (question == "onshapechange") {
        askOnShapeChange(host, words);
    } else if (question == "tactics") {
        askTactics(host, words);
    } else if (question == "enqueue") {
        askEnqueue(host, words);
    } else {
        throw std::runtime_error("no such question: " + question);
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::cerr << "host CORE [LEAN]\n";
        return 2;
    }
    static Finder finder;
    try {
        Host const host = load(argv[1], argc > 2 ? argv[2] : nullptr, finder);
        std::cout << "." << std::endl;
        for (std::string line; std::getline(std::cin, line);) {
            answer(host, line);
            std::cout << "." << std::endl;
        }
    } catch (std::exception const& error) {
        std::cout << "error " << error.what() << std::endl;
        return 1;
    }
    return 0;
}

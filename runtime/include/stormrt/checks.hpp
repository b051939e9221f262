// SPDX-License-Identifier: Apache-2.0
// What engine.hpp checks before TensorRT sees a plan: its own refusals come late and in its own
// words, and a wrong plugin library it does not find at all.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "sha256.hpp"
#include "support.hpp"

namespace stormrt {

struct PluginLibrary {
    std::string path;
    std::string sha256;  // of the one that the engine was built with; empty: not checked
};

// What the manifest says of the engine ("engine" in manifest.json). What is left out is not checked
// here; TensorRT itself refuses a plan of another version or GPU.
struct Options {
    std::vector<PluginLibrary> plugins;
    std::string sha256;             // of the plan
    std::string version;            // TensorRT's, e.g. "10.3.0"
    int sm = 0;                     // compute capability times ten
    bool cudaGraph = false;         // record the work once a batch size, and replay it
    cudaStream_t stream = nullptr;  // to work on, kept alive by the caller; null: one of its own
};

namespace detail {

inline constexpr char const* kRebuild = "build it again on this machine: stormrt build FOLDER";

inline std::string formatSm(int sm) {
    return "SM " + std::to_string(sm / 10) + "." + std::to_string(sm % 10);
}

inline Error refused(std::string const& what, std::string const& where) {
    std::string const errors = Log::instance().takeErrors();
    return Error("TensorRT " + what + " (" + where + ")",
                 errors.empty() ? "no reason given" : errors, "", kRebuild);
}

inline void checkMachine(Options const& options) {
    // 100300 for 10.3.0.
    int32_t const found = getInferLibVersion();
    std::string const version = std::to_string(found / 10000) + "." +
                                std::to_string(found / 100 % 100) + "." +
                                std::to_string(found % 100);
    if (found / 10000 != NV_TENSORRT_MAJOR) {
        // The registry's functions have other places in another major version: a crash.
        throw Error("the program was compiled for another TensorRT", "TensorRT " + version,
                    "TensorRT " + std::to_string(NV_TENSORRT_MAJOR),
                    "compile it against the headers of the TensorRT that is installed");
    }
    // The fourth number is not to be had in 10.3.
    if (!options.version.empty() && (options.version + ".").rfind(version + ".", 0) != 0) {
        throw Error("the engine was built by another version of TensorRT", "TensorRT " + version,
                    "TensorRT " + options.version, kRebuild);
    }
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    int major = 0;
    int minor = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
          "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
          "cudaDeviceGetAttribute");
    if (options.sm != 0 && options.sm != 10 * major + minor) {
        throw Error("the engine is for another GPU", formatSm(10 * major + minor),
                    formatSm(options.sm), kRebuild);
    }
    if (options.cudaGraph && options.stream == cudaStreamLegacy) {
        throw Error("CUDA records no graph on the default stream", "", "",
                    "give another stream, or none");
    }
}

inline void checkDigest(std::string const& path, std::string const& expected, char const* what,
                        char const* fix) {
    if (!std::filesystem::is_regular_file(path)) {
        throw Error("a file is missing", path, "", kRebuild);
    }
    if (expected.empty()) {
        return;
    }
    std::string const found = sha256File(path);
    if (found != expected) {
        throw Error(what, path + ", SHA-256 " + found, "SHA-256 " + expected, fix);
    }
}

// Before the plan, which names its plugins. Never unloaded: engines may be alive. TensorRT
// refuses a library whose plugins it has, so each is given to it once.
inline void loadPlugins(std::vector<PluginLibrary> const& libraries) {
    static std::mutex* const mutex = new std::mutex;
    static auto* const loaded = new std::set<std::string>;
    std::lock_guard<std::mutex> const lock(*mutex);
    for (PluginLibrary const& library : libraries) {
        checkDigest(library.path, library.sha256,
                    "the engine was built with another plugin library",
                    "give the library with that digest, or build the engine again");
        std::string const path = std::filesystem::canonical(library.path).string();
        if (loaded->count(path) != 0) {
            continue;
        }
        Log::instance().takeErrors();
        if (getPluginRegistry()->loadLibrary(path.c_str()) == nullptr) {
            throw refused("does not load the plugin library", path);
        }
        loaded->insert(path);
    }
}

}  // namespace detail

}  // namespace stormrt

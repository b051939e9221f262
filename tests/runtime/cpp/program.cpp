// SPDX-License-Identifier: Apache-2.0
// Does with engine.hpp what its arguments say, and prints what came of it and what was called.
//
//     program PLAN [OPTION VALUE]... [STEP]...
//
// Steps: infer=N and enqueue=N check the results; calls prints the calls since the last one.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stormrt/engine.hpp>
#include <string>
#include <vector>

#include "fakes.h"

namespace {

constexpr size_t kClasses = 5;

std::vector<float> randomImages(size_t count) {
    static std::mt19937 generator(7);
    std::vector<float> images(count);
    for (float& value : images) {
        value = std::uniform_real_distribution<float>(-1, 1)(generator);
    }
    return images;
}

size_t itemOf(stormrt::Engine const& engine) {
    nvinfer1::Dims const& shape = engine.inputShape();
    return static_cast<size_t>(shape.d[1] * shape.d[2] * shape.d[3]);
}

bool isRight(std::vector<float> const& logits, std::vector<float> const& images, size_t item) {
    for (size_t i = 0; i < logits.size(); ++i) {
        if (logits[i] != images[i / kClasses * item + i % kClasses]) {
            return false;
        }
    }
    return true;
}

bool infer(stormrt::Engine& engine, int32_t batch) {
    auto const count = static_cast<size_t>(batch);
    std::vector<float> const images = randomImages(count * itemOf(engine));
    std::vector<float> logits(count * kClasses, -9);
    engine.infer(images.data(), logits.data(), batch);
    return isRight(logits, images, itemOf(engine));
}

// From device memory that another stream writes, into device memory.
bool enqueue(stormrt::Engine& engine, int32_t batch) {
    auto const count = static_cast<size_t>(batch);
    std::vector<float> const images = randomImages(count * itemOf(engine));
    std::vector<float> logits(count * kClasses, -9);
    size_t const inBytes = images.size() * sizeof(float);
    size_t const outBytes = logits.size() * sizeof(float);
    auto const in = stormrt::detail::allocate(inBytes);
    auto const out = stormrt::detail::allocate(outBytes);
    cudaStream_t other = nullptr;
    cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
    stormrt::detail::Stream const owner(other);
    cudaMemcpyAsync(in.get(), images.data(), inBytes, cudaMemcpyHostToDevice, other);
    engine.waitFor(other);
    engine.enqueue(static_cast<float const*>(in.get()), static_cast<float*>(out.get()), batch);
    cudaMemcpyAsync(logits.data(), out.get(), outBytes, cudaMemcpyDeviceToHost, engine.stream());
    engine.synchronize();
    return isRight(logits, images, itemOf(engine));
}

void print(stormrt::Error const& error) {
    std::printf("problem: %s\ngot: %s\nexpected: %s\nfix: %s\n", error.problem.c_str(),
                error.got.c_str(), error.expected.c_str(), error.fix.c_str());
}

void printCalls() {
    for (std::string const& call : gFakes.calls) {
        std::printf("  %s\n", call.c_str());
    }
    gFakes.calls.clear();
}

bool step(stormrt::Engine& engine, std::string const& text) {
    size_t const split = text.find('=');
    std::string const what = text.substr(0, split);
    std::string const value = split == std::string::npos ? "" : text.substr(split + 1);
    if (what == "infer") {
        std::printf("infer %s\n", infer(engine, std::stoi(value)) ? "right" : "wrong");
    } else if (what == "enqueue") {
        std::printf("enqueue %s\n", enqueue(engine, std::stoi(value)) ? "right" : "wrong");
    } else if (what == "calls") {
        printCalls();
    } else if (what == "fail") {
        gFakes.fail(value);
    } else if (what == "describe") {
        std::printf("%s -> %s, %d to %d\n", engine.inputName().c_str(), engine.outputName().c_str(),
                    engine.leastBatch(), engine.mostBatch());
    } else {
        return false;
    }
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    stormrt::Options options;
    stormrt::detail::Stream theirs;
    int next = 2;
    for (; next + 1 < argc && std::strncmp(argv[next], "--", 2) == 0; next += 2) {
        std::string const name = argv[next];
        std::string const value = argv[next + 1];
        if (name == "--sm") {
            options.sm = std::stoi(value);
        } else if (name == "--version") {
            options.version = value;
        } else if (name == "--sha256") {
            options.sha256 = value;
        } else if (name == "--plugin") {
            size_t const split = value.find('=');
            bool const isBare = split == std::string::npos;
            options.plugins.push_back(
                {value.substr(0, split), isBare ? "" : value.substr(split + 1)});
        } else if (name == "--graph") {
            options.cudaGraph = value == "1";
        } else if (name == "--stream" && value == "legacy") {
            options.stream = cudaStreamLegacy;
        } else if (name == "--stream") {
            cudaStreamCreateWithFlags(&options.stream, cudaStreamNonBlocking);
            theirs.reset(options.stream);
        } else if (name == "--fail") {
            gFakes.fail(value);
        } else if (name == "--library") {
            gFakes.version = std::stoi(value);
        } else {
            std::printf("no option %s\n", name.c_str());
            return EXIT_FAILURE;
        }
    }
    stormrt::setLog([](nvinfer1::ILogger::Severity, char const* message) {
        gFakes.calls.push_back(std::string("log ") + message);
    });
    try {
        stormrt::Engine engine(argv[1], options);
        for (; next < argc; ++next) {
            try {
                if (!step(engine, argv[next])) {
                    std::printf("no step %s\n", argv[next]);
                    return EXIT_FAILURE;
                }
            } catch (stormrt::Error const& error) {
                print(error);  // the next step shows whether it is usable
            }
        }
    } catch (stormrt::Error const& error) {
        print(error);
    }
    theirs.reset();
    std::printf("after\n");
    printCalls();
    std::printf("live %d%s%s\n", gFakes.live, gFakes.lostWork ? ", lost work" : "",
                gFakes.changedContext ? ", changed context" : "");
    return EXIT_SUCCESS;
}

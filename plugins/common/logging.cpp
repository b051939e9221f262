// SPDX-License-Identifier: Apache-2.0
#include "common/logging.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace stormrt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> the_finder{nullptr};

nvinfer1::ILogger* findLogger() noexcept {
    nvinfer1::ILoggerFinder* const finder = the_finder.load();
    if (finder == nullptr) {
        return nullptr;
    }
    // The one function of TensorRT's that is called here and may throw.
    try {
        return finder->findLogger();
    } catch (...) {
        return nullptr;
    }
}

}  // namespace

void setFinder(nvinfer1::ILoggerFinder* finder) noexcept { the_finder.store(finder); }

void log(Severity severity, char const* who, char const* format, ...) noexcept {
    char text[640];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);

    char line[768];
    std::snprintf(line, sizeof(line), "stormrt: %s: %s", who, text);
    if (nvinfer1::ILogger* const logger = findLogger()) {
        logger->log(severity, line);
    } else if (severity <= Severity::kWARNING) {
        std::fprintf(stderr, "%s\n", line);
    }
}

}  // namespace stormrt

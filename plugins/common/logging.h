// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <NvInferRuntime.h>

#include "common/message.h"

namespace stormrt {

using Severity = nvinfer1::ILogger::Severity;

//! Where messages go from now on: the logger of the engine whose plugin is called. Without a finder
//! (a host that did not load this library through TensorRT) they go to stderr from kWARNING up.
void setFinder(nvinfer1::ILoggerFinder* finder) noexcept;

//! Logs one line, `stormrt: <who>: <text>`. Never throws and never allocates.
__attribute__((format(printf, 3, 4))) void log(Severity severity, char const* who,
                                               char const* format, ...) noexcept;

}  // namespace stormrt

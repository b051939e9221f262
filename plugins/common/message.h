// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdarg>
#include <cstdio>

namespace stormrt {

//! A text of bounded length that is written without allocating, so that a noexcept function can.
class Message {
public:
    //! Replaces the text, as printf would write it. Returns false, for `return reason.set(...)`.
    __attribute__((format(printf, 2, 3))) bool set(char const* format, ...) noexcept {
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(text_, sizeof(text_), format, arguments);
        va_end(arguments);
        return false;
    }

    char const* text() const noexcept { return text_; }

private:
    char text_[512]{};
};

}  // namespace stormrt

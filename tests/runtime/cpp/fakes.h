// SPDX-License-Identifier: Apache-2.0
// What the imitations of TensorRT and CUDA share with the program that tests engine.hpp.
#pragma once

#include <string>
#include <vector>

struct Fakes {
    std::vector<std::string> calls;
    std::string failing;          // the one of CUDA's or TensorRT's functions that fails
    int spared = 0;               // calls of it that succeed before
    int sm = 75;                  // of the fake GPU
    int version = 101401;         // what the library says of itself: 10.14.1
    int live = 0;                 // what CUDA has given and not got back
    bool lostWork = false;        // something was given back while work still used it
    bool changedContext = false;  // a graph was replayed whose context had moved on

    // "enqueueV3" fails always, "enqueueV3@1" after one call.
    void fail(std::string const& text) {
        auto const split = text.find('@');
        failing = text.substr(0, split);
        spared = split == std::string::npos ? 0 : std::stoi(text.substr(split + 1));
    }
};

inline Fakes gFakes;

// Writes a call down; whether it shall succeed.
inline bool called(std::string const& name, std::string const& arguments = "") {
    gFakes.calls.push_back(name + (arguments.empty() ? "" : " " + arguments));
    return gFakes.failing != name || gFakes.spared-- > 0;
}

// SPDX-License-Identifier: Apache-2.0
// The kernels between which launch() chooses; each is in a file of its own.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "selective_scan_2d/kernel.h"

namespace stormrt::selective_scan_2d {

struct Device {
    int multiprocessors;
    int shared_bytes;  //!< the most that a block can ask for
};

//! How a block works: its threads, and how many channels of an image it has.
struct Shape {
    int group;     //!< threads of each of the block's two groups; 0: the kernel chooses
    int channels;  //!< the kernel's own measure of a block's channels
};

//! What a call launches.
struct Launch {
    char const* kernel;
    int blocks;
    int threads;       //!< of a block
    int shared_bytes;  //!< dynamic shared memory of a block
    //! The kernel's variant, by its address on the host.
    void const* function = nullptr;
};

//! Loads of several values need tensors that begin where such a load may.
inline bool isAligned(Params const& p) {
    uintptr_t bits = 0;
    for (void const* tensor : {p.x, p.dt, p.b, p.c, static_cast<void const*>(p.y)}) {
        bits |= reinterpret_cast<uintptr_t>(tensor);
    }
    return bits % 16 == 0;
}

//! Any size and type (banded.cu). A shape that does not fit the sizes is replaced by the default.
//! With a `description` nothing is launched: it says what would be. So for all of these.
cudaError_t launchBanded(Params const& params, Shape shape, Device const& device,
                         cudaStream_t stream, Launch* description) noexcept;

//! FP16, one state component, whole channels in shared memory (staged.cu).
bool fitsStaged(Params const& params, Shape shape, Device const& device) noexcept;
cudaError_t launchStaged(Params const& params, Shape shape, Device const& device,
                         cudaStream_t stream, Launch* description) noexcept;

//! launch() on a device of which these facts are known.
cudaError_t launchOn(Params const& params, int32_t tactic, Device const& device,
                     cudaStream_t stream, Launch* description) noexcept;

}  // namespace stormrt::selective_scan_2d

// SPDX-License-Identifier: Apache-2.0
// Says what scans would launch, without a GPU. One line in:
//
//     BATCH CHANNELS HEIGHT WIDTH STATE IS_HALF OFFSET TACTIC MULTIPROCESSORS SHARED_BYTES
//
// OFFSET is where tensors begin, in bytes from an aligned address. One line out: how many tactics
// there are, the launch's status, and if that is 0 the kernel, blocks, threads, dynamic shared
// bytes, and the address of the variant.
#include <cstdio>

#include "selective_scan_2d/launches.h"

int main() {
    using namespace stormrt::selective_scan_2d;
    Params p{};
    Device device{};
    int is_half = 0;
    int tactic = 0;
    unsigned long offset = 0;
    while (std::scanf("%d %d %d %d %d %d %lu %d %d %d", &p.batch, &p.channels, &p.height, &p.width,
                      &p.state, &is_half, &offset, &tactic, &device.multiprocessors,
                      &device.shared_bytes) == 10) {
        p.dtype = is_half != 0 ? DType::kFloat16 : DType::kFloat32;
        p.x = p.dt = p.b = p.c = p.y = reinterpret_cast<void*>(offset);
        Launch launch{};
        cudaError_t const status = launchOn(p, tactic, device, nullptr, &launch);
        std::printf("%d %d %s %d %d %d %p\n", countTactics(p), static_cast<int>(status),
                    launch.kernel != nullptr ? launch.kernel : "-", launch.blocks, launch.threads,
                    launch.shared_bytes, launch.function);
    }
    return 0;
}

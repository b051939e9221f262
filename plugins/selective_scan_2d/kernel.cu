// SPDX-License-Identifier: Apache-2.0
// Which kernel a scan runs on, and how.

#include <climits>

#include "selective_scan_2d/kernel.h"
#include "selective_scan_2d/launches.h"

namespace stormrt::selective_scan_2d {
namespace {

constexpr int kBandedGroups[] = {32, 64, 96, 128, 160, 192, 224, 256};
constexpr int kBandedChannels[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32};
constexpr int kStagedGroups[] = {32, 64, 96, 128, 160, 192, 224};
constexpr int kStagedSteps[] = {1, 2, 3, 4, 6, 8};
constexpr int kBandedTactics = 80;
constexpr int kStagedTactics = 42;

bool isValid(Params const& p) {
    if (p.batch < 1 || p.channels < 1 || p.height < 1 || p.width < 1) return false;
    if (p.state < 1 || p.state > kMaxState || p.height > kMaxHeight) return false;
    if (p.dtype != DType::kFloat32 && p.dtype != DType::kFloat16) return false;
    double const elements = 4.0 * p.batch * p.channels * p.height * p.width;
    return elements <= INT_MAX;
}

bool hasStaged(Params const& p) { return p.dtype == DType::kFloat16 && p.state == 1; }

//! Facts of the current device, asked for once a thread and device: no call of the runtime that
//! could wait stands between launches.
cudaError_t currentDevice(Device& device) {
    thread_local int known = -1;
    thread_local Device facts{};
    int index = 0;
    cudaError_t status = cudaGetDevice(&index);
    if (status == cudaSuccess && index != known) {
        status =
            cudaDeviceGetAttribute(&facts.multiprocessors, cudaDevAttrMultiProcessorCount, index);
        if (status == cudaSuccess) {
            status = cudaDeviceGetAttribute(&facts.shared_bytes,
                                            cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
        }
        if (status == cudaSuccess) known = index;
    }
    device = facts;
    return status;
}

}  // namespace

int32_t countTactics(Params const& params) noexcept {
    if (!isValid(params)) return 0;
    return hasStaged(params) ? kBandedTactics + kStagedTactics : kBandedTactics;
}

cudaError_t launch(Params const& p, int32_t tactic, cudaStream_t stream) noexcept {
    Device device{};
    cudaError_t const status = currentDevice(device);
    return status == cudaSuccess ? launchOn(p, tactic, device, stream, nullptr) : status;
}

cudaError_t launchOn(Params const& p, int32_t tactic, Device const& device, cudaStream_t stream,
                     Launch* description) noexcept {
    if (tactic < 0 || tactic > countTactics(p) || !isValid(p)) return cudaErrorInvalidValue;
    if (tactic > kBandedTactics) {
        int const index = tactic - kBandedTactics - 1;
        Shape const shape{kStagedGroups[index / 6], kStagedSteps[index % 6]};
        // A tactic that does not fit these sizes runs as the default: TensorRT times them all.
        if (fitsStaged(p, shape, device)) {
            return launchStaged(p, shape, device, stream, description);
        }
        tactic = 0;
    }
    if (tactic > 0) {
        Shape const shape{kBandedGroups[(tactic - 1) / 10], kBandedChannels[(tactic - 1) % 10]};
        return launchBanded(p, shape, device, stream, description);
    }
    if (hasStaged(p) && fitsStaged(p, Shape{}, device)) {
        return launchStaged(p, Shape{}, device, stream, description);
    }
    return launchBanded(p, Shape{}, device, stream, description);
}

}  // namespace stormrt::selective_scan_2d

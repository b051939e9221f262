// SPDX-License-Identifier: Apache-2.0
// What racecheck makes of the handovers between the groups of plugins/selective_scan_2d/staged.cu:
// the same protocol in a kernel of ten lines, where it is the PTX manual's own example of a
// producer and a consumer (PTX ISA, "bar, barrier"), and once with a handover left out.
//
//     nvcc -arch=native -o handovers handovers.cu
//     compute-sanitizer --tool racecheck ./handovers
//
// Prints the name of each variant before it runs. Results are compared with what they must be.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

enum Handover : int { kIsFull = 3, kIsFree = 4 };

enum Variant {
    kArrive,     // as the kernel is shipped: who hands over does not wait
    kBlocking,   // as with STORMRT_BLOCKING_HANDOVERS: both wait
    kTwoPlaces,  // the same, and the block waits for itself in the groups' branches
    kGroups,     // the second, and the groups wait for themselves too, the other group more often
    kEarly,      // as the first, but the buffer is freed before it is read: a race
};

constexpr int kGroup = 128;
constexpr int kBlock = 2 * kGroup;
constexpr int kSteps = 5;
constexpr int kPasses = 2;  // of the whole, as in a block that starts again

__device__ void await(Handover barrier) {
    asm volatile("bar.sync %0, %1;" ::"r"(static_cast<int>(barrier)), "r"(kBlock) : "memory");
}

template <Variant kVariant>
__device__ void awaitGroup(int barrier) {
    if constexpr (kVariant == kGroups) {
        asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(kGroup) : "memory");
    }
}

template <Variant kVariant>
__device__ void arrive(Handover barrier) {
    if constexpr (kVariant != kArrive && kVariant != kEarly) {
        await(barrier);
    } else {
        asm volatile("bar.arrive %0, %1;" ::"r"(static_cast<int>(barrier)), "r"(kBlock) : "memory");
    }
}

//! The first group writes, the second reads what another thread has written.
template <Variant kVariant>
__global__ void handOver(int* out) {
    __shared__ int buffer[kGroup];
    int const thread = threadIdx.x % kGroup;
    int total = 0;
    for (int pass = 0; pass < kPasses; ++pass) {
        for (int step = 0; step < kSteps; ++step) {
            if (threadIdx.x < kGroup) {
                awaitGroup<kVariant>(1);
                if (step > 0) await(kIsFree);
                buffer[thread] = step * thread;
                arrive<kVariant>(kIsFull);
            } else {
                awaitGroup<kVariant>(2);
                await(kIsFull);
                bool const frees = step + 1 < kSteps;
                if (kVariant == kEarly && frees) arrive<kVariant>(kIsFree);
                total += buffer[kGroup - 1 - thread];
                awaitGroup<kVariant>(2);
                if (kVariant != kEarly && frees) arrive<kVariant>(kIsFree);
            }
        }
        if constexpr (kVariant != kTwoPlaces) {
            __syncthreads();
        } else if (threadIdx.x < kGroup) {
            asm volatile("bar.sync 0;" ::: "memory");
        } else {
            asm volatile("bar.sync 0; // the other place" ::: "memory");
        }
    }
    if (threadIdx.x >= kGroup) out[thread] = total;
}

void check(cudaError_t status) {
    if (status != cudaSuccess) {
        std::fprintf(stderr, "%s\n", cudaGetErrorString(status));
        std::exit(EXIT_FAILURE);
    }
}

template <Variant kVariant>
bool run(char const* name) {
    std::printf("%s\n", name);
    std::fflush(stdout);
    int* out = nullptr;
    check(cudaMalloc(&out, kGroup * sizeof(int)));
    handOver<kVariant><<<1, kBlock>>>(out);
    check(cudaGetLastError());
    std::vector<int> result(kGroup);
    check(cudaMemcpy(result.data(), out, kGroup * sizeof(int), cudaMemcpyDeviceToHost));
    check(cudaFree(out));
    bool right = true;
    for (int thread = 0; thread < kGroup; ++thread) {
        int const sum = kPasses * kSteps * (kSteps - 1) / 2 * (kGroup - 1 - thread);
        right = right && result[static_cast<size_t>(thread)] == sum;
    }
    return right;
}

int main() {
    bool const right = run<kArrive>("arrive") && run<kBlocking>("blocking") &&
                       run<kTwoPlaces>("two places") && run<kGroups>("groups");
    run<kEarly>("freed early");  // its result is anything
    std::printf("results are %s\n", right ? "right" : "wrong");
    return right ? EXIT_SUCCESS : EXIT_FAILURE;
}

// SPDX-License-Identifier: Apache-2.0
// SelectiveScan2D for FP16 and one state component, whole channels at a time in shared memory.
//
// A block takes a few channels of an image in steps of as many as its threads can hold at once. Its
// two groups of warps work on the forward and on the backward direction. In a step each thread has
// one run of kRun positions down a column, then one of kRun positions along the rows: it runs from
// a zero state, the group scans the runs' (decay, state) pairs, and what the state before a run
// contributes is added. So a direction costs one barrier a step. The scan over pairs is Kogge and
// Stone's (1973) within a warp, serial over warps. Decays are only multiplied, never divided by.
//
// Everything is read from global memory once, in the order in which it lies there, by asynchronous
// copies that run a phase ahead; runs are read from shared memory, down columns by transposing
// matrix loads where the map's width allows. Runs have lengths such that neighbouring threads' runs
// lie in different banks, so that no address needs arithmetic beyond its run's first.
//
// The four directions are summed in shared memory in FP32, in the order k = 1, 3, 0, 2: the groups
// hand the sum to each other as producer and consumer, and neither waits for a whole block.

#include <algorithm>
#include <cfloat>

#include "selective_scan_2d/arithmetic.cuh"
#include "selective_scan_2d/launches.h"

namespace stormrt::selective_scan_2d {
namespace {

constexpr int kMaxGroup = 224;  //!< 2 blocks of 2 groups at 72 registers a thread
constexpr int kMaxWarps = kMaxGroup / kWarp;
constexpr int kGap = 16;          //!< halves between planes, read by runs that are too long
constexpr int kSmallMap = 16;     //!< runs of a channel
constexpr int kSmallGroup = 128;  //!< threads

struct Geometry {
    int channels;        //!< D
    int height;          //!< H
    int width;           //!< W
    int length;          //!< L = H * W
    int step_channels;   //!< channels of a step
    int block_channels;  //!< channels of a block
    int blocks_a_image;  //!< blocks that share an image
    int plane;           //!< halves of a step's channels in shared memory
    int maps;            //!< halves of the four maps of b, or of c, in shared memory
    int row_runs;        //!< runs of a channel along its rows
    int col_parts;       //!< runs of a column
    int plane_chunk;     //!< halves that one copy of a plane moves: 8, 2 or 1
    int maps_chunk;      //!< halves that one copy of the maps of b, or of c, moves
    Divisor by_row_runs;
    Divisor by_col_runs;  //!< by W * col_parts, the runs of a channel down its columns
    Divisor by_col_parts;
};

//! Barriers between the groups: the first one arrives, the other waits. 0 to 2 are taken.
enum Handover : int { kSumOfOne = 3, kSumOfTwo, kSumOfThree, kSumIsFree };

//! A build with STORMRT_BLOCKING_HANDOVERS waits here too. It orders no more of what is handed
//! over, but racecheck can judge it (docs/plugins.md); 3 to 11 % slower.
__device__ __forceinline__ void arrive(Handover barrier) {
#ifdef STORMRT_BLOCKING_HANDOVERS
    asm volatile("bar.sync %0, %1;" ::"r"(static_cast<int>(barrier)), "r"(blockDim.x) : "memory");
#else
    asm volatile("bar.arrive %0, %1;" ::"r"(static_cast<int>(barrier)), "r"(blockDim.x) : "memory");
#endif
}

__device__ __forceinline__ void await(Handover barrier) {
    asm volatile("bar.sync %0, %1;" ::"r"(static_cast<int>(barrier)), "r"(blockDim.x) : "memory");
}

//! Waits for the block at a place that its two groups do not share. __syncthreads() is only for one
//! that all threads come to; barriers of PTX go by their number, here the same one.
__device__ __forceinline__ void awaitBlock() { asm volatile("bar.sync 0;" ::: "memory"); }

template <int kHalves>
__device__ __forceinline__ void copyAsync(uint32_t to, __half const* from) {
#if __CUDA_ARCH__ >= 800
    if constexpr (kHalves == 8) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
        return;
    } else if constexpr (kHalves == 2) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
        return;
    }
#endif
    using Load = typename Chunk<kHalves * sizeof(__half)>::type;
    *static_cast<Load*>(__cvta_shared_to_generic(to)) = __ldg(reinterpret_cast<Load const*>(from));
}

__device__ __forceinline__ void endOfGroupOfCopies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

//! Waits for this thread's copies, but those of the last `kGroups` groups.
template <int kGroups>
__device__ __forceinline__ void awaitCopies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

template <int kHalves>
__device__ __forceinline__ void stageAs(__half* to, __half const* from, int count, int thread,
                                        int threads) {
    int const first = thread * kHalves;
    int const step = threads * kHalves;
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to + first));
    from += first;
#pragma unroll 1
    for (int left = count - first; left > 0; left -= step) {
        copyAsync<kHalves>(address, from);
        address += step * static_cast<int>(sizeof(__half));
        from += step;
    }
}

//! For sizes that are not of 16 bytes; apart, so that it is not in the way of the others.
__device__ __noinline__ void stageOdd(__half* to, __half const* from, int count, int chunk,
                                      int thread, int threads) {
    if (chunk == 2) {
        stageAs<2>(to, from, count, thread, threads);
    } else {
        stageAs<1>(to, from, count, thread, threads);
    }
    // A call returns thread by thread, but barriers count on whole warps.
    __syncwarp();
}

//! Starts to copy `count` halves, by the `threads` of which this is one.
__device__ __forceinline__ void stage(__half* to, __half const* from, int count, int chunk,
                                      int thread, int threads) {
    if (chunk == 8) {
        stageAs<8>(to, from, count, thread, threads);
    } else {
        stageOdd(to, from, count, chunk, thread, threads);
    }
}

//! Four 8 x 8 matrices of halves, transposed: each thread gets two neighbours of a column of each.
__device__ __forceinline__ void loadTransposed(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d,
                                               __half const* row) {
    uint32_t const address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(address)
                 : "memory");
}

//! How a kernel cuts the maps into runs.
template <int kRun_, int kVector_, bool kMatrix_, bool kWhole_>
struct Cut {
    static constexpr int kRun = kRun_;         //!< positions of a run
    static constexpr int kVector = kVector_;   //!< halves to a load along the rows
    static constexpr bool kMatrix = kMatrix_;  //!< four runs to a column, by matrix loads
    static constexpr bool kWhole = kWhole_;    //!< no run reaches past its channel's end
};

//! What the compiler may not compute ahead of its use, and so keep in a register for long.
__device__ __forceinline__ int here(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

//! Where a thread's run is, in every step.
struct Place {
    int channel;   //!< in the step
    int position;  //!< of the first element in the map
    int source;    //!< from where this thread loads: its position, or its row of a matrix load
    int second;    //!< from there to where it loads next, of a matrix load
    int count;     //!< positions inside the map; 0: this thread has nothing to do
    bool begins;   //!< its first position in visiting order is the channel's first
};

//! A place in two registers: it is kept through the other axis' work. Maps are small here.
struct PackedPlace {
    int positions;
    int others;

    __device__ __forceinline__ explicit PackedPlace(Place const& at)
        : positions{at.position | at.source << 16},
          others{at.channel | at.count << 8 | (at.begins ? 1 << 12 : 0) | at.second << 16} {}

    __device__ __forceinline__ Place unpacked() const {
        int const p = here(positions);
        int const o = here(others);
        return {o & 255, p & 0xffff, p >> 16 & 0xffff, o >> 16, o >> 8 & 15, (o >> 12 & 1) != 0};
    }
};

template <typename C>
union Run {
    static_assert(C::kVector == 1 || C::kRun % C::kVector == 0, "whole loads");
    __half values[C::kRun];
    uint32_t pairs[8];  //!< as matrix loads give them
    typename Chunk<C::kVector * sizeof(__half)>::type loads[C::kRun / C::kVector];
    __device__ Run() {}
    __device__ __forceinline__ float at(int i) const { return __half2float(values[i]); }
};

//! (decay, state) of the warps, [axis][group][warp]: at the beginning of shared memory.
constexpr int kTotals = 2 * 2 * (kMaxWarps + 1);

//! One group of a block: the directions kReverse ? {3, 2} : {1, 0}. Unless kAnySize, steps of dt
//! are taken to be below 88 (127 ln 2).
template <typename C, bool kReverse, bool kAnySize>
struct Group {
    static constexpr int kRun = C::kRun;

    Params const& p;
    Geometry const& g;
    float2* totals;  //!< of this group: [axis][2][warp]
    int image;
    int threads;
    int thread;     //!< of the group
    __half* maps;   //!< b and c of the directions 0 to 3: [2][4][L]
    __half* dt;     //!< of this group: [axis][plane], rows first
    __half* x;      //!< [2][plane], steps taking turns
    float* sum;     //!< [plane]
    int* overflow;  //!< set where 2^z may have been too large

    __device__ __forceinline__ static constexpr int direction(bool by_rows) {
        return (by_rows ? 0 : 1) + (kReverse ? 2 : 0);
    }

    __device__ __forceinline__ void stageX(int first, int channels, int buffer) const {
        stage(x + buffer * g.plane,
              static_cast<__half const*>(p.x) + (image * g.channels + first) * g.length,
              channels * g.length, g.plane_chunk, thread, threads);
    }

    __device__ __forceinline__ void stageDt(bool by_rows, int first, int channels) const {
        int const plane = (image * kDirections + direction(by_rows)) * g.channels + first;
        stage(dt + (by_rows ? 0 : g.plane), static_cast<__half const*>(p.dt) + plane * g.length,
              channels * g.length, g.plane_chunk, thread, threads);
    }

    //! The maps of b and c that the rows' or the columns' direction needs. Where a map is not of
    //! whole copies, all maps together are nearer to it: then everything comes with the columns'.
    __device__ __forceinline__ void stageMaps(bool by_rows) const {
        int const from = image * kDirections * g.length;
        __half const* const b = static_cast<__half const*>(p.b) + from;
        __half const* const c = static_cast<__half const*>(p.c) + from;
        if (g.length % 8 == 0) {
            int const k = direction(by_rows) * g.length;
            stageAs<8>(maps + k, b + k, g.length, thread, threads);
            stageAs<8>(maps + g.maps + k, c + k, g.length, thread, threads);
        } else if (!by_rows) {
            stage(kReverse ? maps + g.maps : maps, kReverse ? c : b, kDirections * g.length,
                  g.maps_chunk, thread, threads);
        }
    }

    template <bool kByRows>
    __device__ __forceinline__ Place locate() const {
        Place at{};
        int const runs = kByRows ? g.row_runs : g.width * g.col_parts;  // of a channel
        int const all = g.step_channels * runs;
        // A thread without a run follows one of the first warp: matrix loads need their lanes.
        int const run = thread < all ? thread : min(thread % kWarp, all - 1);
        at.channel = kByRows ? g.by_row_runs.quotient(run) : g.by_col_runs.quotient(run);
        int const own = run - at.channel * runs;
        at.begins = own == (kReverse ? runs - 1 : 0);
        if constexpr (kByRows) {
            at.position = own * kRun;
            at.count = min(kRun, g.length - at.position);
        } else {
            int const column = C::kMatrix ? own / 4 : g.by_col_parts.quotient(own);
            int const part = own - column * (C::kMatrix ? 4 : g.col_parts);
            at.position = part * kRun * g.width + column;
            at.count = min(kRun, g.height - part * kRun);
        }
        at.source = at.position;
        if constexpr (!kByRows && C::kMatrix) {
            // A warp has eight columns, four runs each. Its matrix m has the rows 2m and 2m + 1 of
            // each run: row j is row 2m + j % 2 of run j / 2, and lane 8m + j says where it is.
            int const lane = thread % kWarp;
            // The second load's last matrices are unused: their lanes point to rows of their own.
            int const row = (lane % 8) / 2 * kRun + lane / 8 * 2 + lane % 2;
            int const first = min(row, g.height - 1);
            int const second = lane / 8 < kRun / 2 - 4 ? min(row + 8, g.height - 1) : first;
            at.source = first * g.width + own / kWarp * 8;
            at.second = (second - first) * g.width;
        }
        if (thread != run) at.count = 0;
        return at;
    }

    //! The run of a map that begins at `map` in shared memory.
    template <bool kByRows>
    __device__ __forceinline__ void load(Run<C>& run, __half const* map, Place const& at) const {
        if constexpr (kByRows) {
            // A run that reaches past its channel's end reads what lies behind it: there is a gap.
            using Load = typename Chunk<C::kVector * sizeof(__half)>::type;
            Load const* const from = reinterpret_cast<Load const*>(map + at.position);
#pragma unroll
            for (int i = 0; i < kRun / C::kVector; ++i) {
                run.loads[i] = from[i];
            }
        } else if constexpr (C::kMatrix) {
            // This thread gets the column lane / 4 of the eight, and of it the run lane % 4.
            uint32_t* const pairs = run.pairs;
            __half const* const from = map + at.source;
            loadTransposed(pairs[0], pairs[1], pairs[2], pairs[3], from);
            if constexpr (kRun > 8) {
                loadTransposed(pairs[4], pairs[5], pairs[6], pairs[7], from + at.second);
            }
        } else {
            __half const* const from = map + at.position;
#pragma unroll
            for (int i = 0; i < kRun; ++i) {
                run.values[i] = from[(C::kWhole ? i : max(0, min(i, at.count - 1))) * g.width];
            }
        }
    }

    //! States of a run, divided by ln 2, and the decay from before the run to each.
    struct States {
        float state[kRun];
        float decay[kRun];
    };

    //! Runs from a zero state. Returns the run's own (decay, state).
    template <bool kByRows>
    __device__ __forceinline__ float2 scan(States& states, Place const& at, __half const* plane,
                                           __half const* map_b, float bias, float a) const {
        Run<C> dt_run, x_run, b_run;
        load<kByRows>(dt_run, dt + (kByRows ? 0 : g.plane) + at.channel * g.length, at);
        load<kByRows>(x_run, plane + at.channel * g.length, at);
        load<kByRows>(b_run, map_b, at);
        float decay = 1.0F;
        float state = 0.0F;
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
            int const i = kReverse ? kRun - 1 - j : j;
            float const z = fmaf(dt_run.at(i), kLog2E, bias);
            // log2(e) softplus. 2^z overflows where z > 127.
            float const l = kAnySize ? fastLog2OnePlusExp2(z) : fastLog2(1.0F + fastExp2(z));
            float d = fastExp2(a * l);
            float drive = l * x_run.at(i) * b_run.at(i);
            if (!C::kWhole && i >= at.count) {
                d = 1.0F;
                drive = 0.0F;
            }
            state = fmaf(d, state, drive);
            decay *= d;
            states.state[i] = state;
            states.decay[i] = decay;
        }
        return make_float2(decay, state);
    }

    //! The state before this thread's run. Other threads' copies are visible after it.
    __device__ __forceinline__ float stateBefore(float decay, float state, bool by_rows) const {
        int const own = here(thread);
        int const lane = own % kWarp;
        int const warp = own / kWarp;
        constexpr int kLast = kReverse ? 0 : kWarp - 1;
        auto const shifted = [](float v, int offset) {
            return kReverse ? __shfl_down_sync(0xffffffffU, v, offset)
                            : __shfl_up_sync(0xffffffffU, v, offset);
        };
#pragma unroll
        for (int offset = 1; offset < kWarp; offset *= 2) {
            float const d = shifted(decay, offset);
            float const s = shifted(state, offset);
            int const rank = kReverse ? kWarp - 1 - lane : lane;
            // Predicated in place: the compiler would move both values twice.
            asm("{ .reg .pred p; setp.ge.s32 p, %4, %5; @p fma.rn.f32 %0, %1, %3, %0;"
                " @p mul.f32 %1, %1, %2; }"
                : "+f"(state), "+f"(decay)
                : "f"(d), "f"(s), "r"(rank), "r"(offset));
        }
        float2* const pairs = totals + (by_rows ? kTotals / 2 : 0);
        if (lane == kLast) pairs[warp] = make_float2(decay, state);
        float const d = shifted(decay, 1);
        float const s = shifted(state, 1);
        endOfGroupOfCopies();
        awaitCopies<0>();
        groupBarrier(kReverse, threads);
        // The pairs of the warps before this one, in visiting order.
        float before = 0.0F;
        int const others = kReverse ? threads / kWarp - 1 - warp : warp;
        float2 const* const first = pairs + (kReverse ? threads / kWarp - 1 : 0);
#pragma unroll
        for (int i = 0; i < kMaxWarps - 1; ++i) {
            if (i < others) {
                float2 const total = first[kReverse ? -i : i];
                before = fmaf(total.x, before, total.y);
            }
        }
        return lane == (kReverse ? kWarp - 1 : 0) ? before : fmaf(d, before, s);
    }

    //! States of this thread's run in one direction, and c beside them.
    template <bool kByRows>
    __device__ __forceinline__ void direction(States& states, Run<C>& c, Place const& at, int count,
                                              int first, __half const* plane) const {
        int const k = direction(kByRows);
        // Of a and dt_bias; a thread without a channel has some other's.
        int const row = k * g.channels + (count > 0 ? first + at.channel : first);
        float const bias = __ldg(p.dt_bias + row) * kLog2E;
        float const a = __ldg(p.a + row);
        __half const* const map_b = maps + k * g.length;
        float2 pair = scan<kByRows>(states, at, plane, map_b, bias, a);
        // A state that is not finite stays so to the end of its run.
        if (!kAnySize && count > 0 && !(fabsf(pair.y) <= FLT_MAX)) *overflow = 1;
        if (count == 0) pair = make_float2(1.0F, 0.0F);
        // A decay of 0 cuts a channel off from the one before it.
        if (at.begins) pair.x = 0.0F;
        float before = stateBefore(pair.x, pair.y, kByRows);
        if (at.begins) before = 0.0F;
        load<kByRows>(c, map_b + g.maps, at);
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
            states.state[i] = fmaf(states.decay[i], before, states.state[i]);
        }
    }

    __device__ __forceinline__ void columns(PackedPlace const& place, int first, int channels,
                                            int next_channels, int step) const {
        Place const at = place.unpacked();
        int const count = at.channel < channels ? at.count : 0;
        States states;
        Run<C> c;
        direction<false>(states, c, at, count, first, x + (step % 2) * g.plane);
        int const next = first + g.step_channels;
        if (next_channels > 0) stageDt(false, next, next_channels);
        float* to = sum + at.channel * g.length + at.position;
        if constexpr (!kReverse) {
            if (step > 0) await(kSumIsFree);
            // The other group has used the other x, since it has freed the sum.
            if (next_channels > 0) stageX(next, next_channels, (step + 1) % 2);
            if (count > 0) {
#pragma unroll
                for (int i = 0; i < kRun; ++i) {
                    if (C::kWhole || i < count) *to = c.at(i) * states.state[i];
                    to += g.width;
                }
            }
            arrive(kSumOfOne);
        } else {
            await(kSumOfOne);
            if (count > 0) {
#pragma unroll
                for (int i = 0; i < kRun; ++i) {
                    if (C::kWhole || i < count) *to = fmaf(c.at(i), states.state[i], *to);
                    to += g.width;
                }
            }
            arrive(kSumOfTwo);
        }
    }

    __device__ __forceinline__ void rows(PackedPlace const& place, int first, int channels,
                                         int next_channels, int step) const {
        constexpr int kFloats = C::kVector > 4 ? 4 : C::kVector;
        using Sums = typename Chunk<kFloats * sizeof(float)>::type;
        Place const at = place.unpacked();
        int const count = at.channel < channels ? at.count : 0;
        __half* const plane = x + (step % 2) * g.plane;
        States states;
        Run<C> c;
        direction<true>(states, c, at, count, first, plane);
        if (next_channels > 0) stageDt(true, first + g.step_channels, next_channels);
        int const position = at.channel * g.length + at.position;
        Sums* const to = reinterpret_cast<Sums*>(sum + position);
        await(kReverse ? kSumOfThree : kSumOfTwo);
        // Positions past a channel's end are read and put back by threads that have no right to
        // them, so they are left out.
        auto const inside = [&](int i) { return C::kWhole ? count > 0 : i < count; };
        Run<C> x_or_y;
        float skip = 0.0F;
        if constexpr (!kReverse) {
            // What skips the scan, in the unit of the sum.
#pragma unroll
            for (int k = 0; k < kDirections; ++k) {
                skip += __ldg(p.d + k * g.channels + (count > 0 ? first + at.channel : first));
            }
            skip *= kLog2E;
            load<true>(x_or_y, plane + at.channel * g.length, at);
        }
#pragma unroll
        for (int i = 0; i < kRun; i += kFloats) {
            union {
                float values[kFloats];
                Sums load;
            } total;
            if (!inside(i)) continue;
            total.load = to[i / kFloats];
#pragma unroll
            for (int j = 0; j < kFloats; ++j) {
                float& value = total.values[j];
                value = fmaf(c.at(i + j), states.state[i + j], value);
                if constexpr (kReverse) {
                    x_or_y.values[i + j] = __float2half_rn(value * kLn2);
                } else {
                    value = fmaf(x_or_y.at(i + j), skip, value);
                }
            }
            if constexpr (!kReverse) to[i / kFloats] = total.load;
        }
        if constexpr (!kReverse) {
            arrive(kSumOfThree);
        } else {
            // y replaces x, and goes from there to global memory in the order of its addresses.
            using Load = typename Chunk<C::kVector * sizeof(__half)>::type;
            Load* const to_y = reinterpret_cast<Load*>(plane + position);
#pragma unroll
            for (int i = 0; i < kRun; i += C::kVector) {
                if (inside(i)) to_y[i / C::kVector] = x_or_y.loads[i / C::kVector];
            }
            groupBarrier(kReverse, threads);
            unstage(static_cast<__half*>(p.y) + (image * g.channels + first) * g.length, plane,
                    channels * g.length);
            // The sum, and x as well.
            if (next_channels > 0) arrive(kSumIsFree);
        }
    }

    template <int kHalves>
    __device__ __forceinline__ void unstageAs(__half* to, __half const* from, int count) const {
        using Load = typename Chunk<kHalves * sizeof(__half)>::type;
        for (int i = thread * kHalves; i < count; i += threads * kHalves) {
            *reinterpret_cast<Load*>(to + i) = *reinterpret_cast<Load const*>(from + i);
        }
    }

    __device__ __forceinline__ void unstage(__half* to, __half const* from, int count) const {
        if (g.plane_chunk == 8) {
            unstageAs<8>(to, from, count);
        } else if (g.plane_chunk == 2) {
            unstageAs<2>(to, from, count);
        } else {
            unstageAs<1>(to, from, count);
        }
    }

    __device__ __forceinline__ void work(int first, int last) const {
        int const channels = min(g.step_channels, last - first);
        // What the first step's columns need comes first; it begins while the rest is under way.
        if constexpr (!kReverse) stageX(first, channels, 0);
        stageDt(false, first, channels);
        stageMaps(false);
        endOfGroupOfCopies();
        stageDt(true, first, channels);
        stageMaps(true);
        endOfGroupOfCopies();
        awaitCopies<1>();
        awaitBlock();
        PackedPlace const by_columns{locate<false>()};
        PackedPlace const by_rows{locate<true>()};
        for (int step = 0, from = first; from < last; ++step, from += g.step_channels) {
            int const here = min(g.step_channels, last - from);
            int const next = min(g.step_channels, last - from - here);
            columns(by_columns, from, here, next, step);
            rows(by_rows, from, here, next, step);
        }
    }
};

//! The work of a block. Whether it has to be done again, for any size of dt.
template <typename C, bool kAnySize>
__device__ __forceinline__ bool scanBlock(Params const& p, Geometry const& g, float2* totals) {
    int const threads = blockDim.x / 2;
    int const image = blockIdx.x / g.blocks_a_image;
    int const first = (blockIdx.x - image * g.blocks_a_image) * g.block_channels;
    int const last = min(first + g.block_channels, g.channels);
    float* const sum = reinterpret_cast<float*>(totals + kTotals);
    __half* const maps = reinterpret_cast<__half*>(sum + g.plane);
    __half* const x = maps + 2 * g.maps;
    __half* const dt = x + 2 * g.plane;
    int* const overflow = reinterpret_cast<int*>(totals + kTotals - 1);  // of no warp
    int const thread = threadIdx.x;
    if (!kAnySize && thread == 0) *overflow = 0;
    if (thread < threads) {
        Group<C, false, kAnySize>{p, g, totals, image, threads, thread, maps, dt, x, sum, overflow}
            .work(first, last);
    } else {
        Group<C, true, kAnySize>{p,
                                 g,
                                 totals + kTotals / 4,
                                 image,
                                 threads,
                                 thread - threads,
                                 maps,
                                 dt + 2 * g.plane,
                                 x,
                                 sum,
                                 overflow}
            .work(first, last);
    }
    __syncthreads();
    return !kAnySize && *overflow != 0;
}

template <typename C>
__global__ void __launch_bounds__(2 * kMaxGroup, 2) stagedScan(Params const p, Geometry const g) {
    extern __shared__ uint4 dynamic[];
    float2* const totals = reinterpret_cast<float2*>(dynamic);
    if (scanBlock<C, false>(p, g, totals)) scanBlock<C, true>(p, g, totals);
}

int chunkOf(int a, int b) {
    for (int const chunk : {8, 2}) {
        if (a % chunk == 0 && b % chunk == 0) return chunk;
    }
    return 1;
}

size_t sharedBytes(Geometry const& g) {
    return kTotals * sizeof(float2) + g.plane * sizeof(float) +
           (2U * g.maps + 6U * g.plane) * sizeof(__half);
}

//! Whether four runs of a length make a column, and matrix loads can read it.
bool isMatrix(Params const& p, int run) {
    return run % 2 == 0 && p.width % 8 == 0 && ceilDiv(p.height, run) == 4;
}

//! Whether no run reaches past the map's end.
bool isWhole(Params const& p, int run) {
    return p.height * p.width % run == 0 && p.height % run == 0;
}

//! Whether there is a kernel for runs of a length. Long runs that may reach past the map's end
//! would need more than 72 registers.
bool hasKernel(Params const& p, int run) {
    int const vector = run == 8 ? 8 : run == 12 ? 4 : run == 7 ? 1 : 2;
    if (p.height * p.width % vector != 0) return false;
    return isWhole(p, run) || run < 12 || (run == 12 && isMatrix(p, run));
}

//! Lanes that idle, and what a run costs beside its positions, for runs of a length: per position.
double costOf(Params const& p, int run) {
    double const waste = static_cast<double>(ceilDiv(p.height, run)) * run / p.height;
    return waste * (isMatrix(p, run) ? 26 : 30) + waste * 45 / run;
}

int runOf(Params const& p) {
    int best = 7;
    for (int const run : {8, 10, 12, 14}) {
        if (hasKernel(p, run) && costOf(p, run) < costOf(p, best)) best = run;
    }
    return best;
}

Geometry geometry(Params const& p, Shape const& shape, int run, Device const& device) {
    Geometry g{};
    g.channels = p.channels;
    g.height = p.height;
    g.width = p.width;
    g.length = p.height * p.width;
    g.row_runs = ceilDiv(g.length, run);
    g.col_parts = ceilDiv(p.height, run);
    int const runs = std::max(g.row_runs, g.width * g.col_parts);
    g.step_channels = std::min(shape.group / runs, p.channels);
    if (g.step_channels == 0) return g;
    // Copies are the wider the more twos are in a step's size.
    for (int fewer = g.step_channels; fewer > g.step_channels / 2; --fewer) {
        if (chunkOf(fewer * g.length, p.channels * g.length) >
            chunkOf(g.step_channels * g.length, p.channels * g.length)) {
            g.step_channels = fewer;
        }
    }
    auto const fit = [&] {
        g.plane = ceilDiv(g.step_channels * g.length, 8) * 8 + kGap;
        g.maps = ceilDiv(kDirections * g.length, 8) * 8;
        return sharedBytes(g) <= static_cast<size_t>(device.shared_bytes);
    };
    while (g.step_channels > 0 && !fit()) --g.step_channels;
    if (g.step_channels == 0) return g;
    g.block_channels = g.step_channels * std::max(1, shape.channels);
    g.blocks_a_image = ceilDiv(p.channels, g.block_channels);
    g.plane_chunk = chunkOf(g.step_channels * g.length, p.channels * g.length);
    g.maps_chunk = chunkOf(kDirections * g.length, kDirections * g.length);
    g.by_row_runs = divisor(g.row_runs);
    g.by_col_runs = divisor(g.width * g.col_parts);
    g.by_col_parts = divisor(g.col_parts);
    return g;
}

template <int kRun, int kVector, bool kMatrix>
cudaError_t launchRun(Params const& p, Geometry const& g, int group, cudaStream_t stream,
                      Launch* description) {
    // As hasKernel() has it.
    constexpr bool kAlwaysWhole = kRun > 12 || (kRun == 12 && !kMatrix);
    auto const kernel = isWhole(p, kRun) ? stagedScan<Cut<kRun, kVector, kMatrix, true>>
                                         : stagedScan<Cut<kRun, kVector, kMatrix, kAlwaysWhole>>;
    size_t const bytes = sharedBytes(g);
    if (description != nullptr) {
        *description = {"staged", p.batch * g.blocks_a_image, 2 * group, static_cast<int>(bytes),
                        reinterpret_cast<void const*>(kernel)};
        return cudaSuccess;
    }
    if (bytes > static_cast<size_t>(kDefaultSharedBytes)) {
        cudaError_t const status = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
        if (status != cudaSuccess) return status;
    }
    kernel<<<p.batch * g.blocks_a_image, 2 * group, bytes, stream>>>(p, g);
    return cudaGetLastError();
}

//! The device as the default uses it: with no more shared memory than every GPU gives a block, or
//! than leaves room for a second block where multiprocessors are as large as those that the default
//! was measured on. Tactics may use it all.
Device withDefaultMemory(Device device) {
    constexpr int kLarge = 200 * 1024;
    device.shared_bytes =
        device.shared_bytes > kLarge ? device.shared_bytes / 2 : kDefaultSharedBytes;
    return device;
}

//! A shape for a call of which nothing was measured. A group of 0: this kernel is not for it.
Shape defaultShape(Params const& p, int run, Device const& device) {
    int const length = p.height * p.width;
    int const runs = std::max(ceilDiv(length, run), p.width * ceilDiv(p.height, run));
    if (runs > kMaxGroup) return Shape{};
    Shape shape{};
    // As many channels as leave the fewest threads of a group idle. Groups of small maps are
    // smaller, so that more blocks share a multiprocessor (measured on an H100,
    // benchmarks/plugins.py).
    bool const few = p.batch * ceilDiv(p.channels, kMaxGroup / runs) < device.multiprocessors;
    int const largest = runs <= kSmallMap || (few && runs <= kSmallGroup) ? kSmallGroup : kMaxGroup;
    double best = 0;
    for (int group = kWarp; group <= largest; group += kWarp) {
        Geometry const g = geometry(p, Shape{group, 1}, run, device);
        double const used = static_cast<double>(g.step_channels * runs) / group;
        if (g.step_channels > 0 && used >= best) {
            best = used;
            shape.group = group;
        }
    }
    if (shape.group == 0) return shape;
    Geometry const g = geometry(p, shape, run, device);
    int const steps = p.batch * ceilDiv(p.channels, g.step_channels);
    int const blocks = device.multiprocessors * (kMaxGroup * 2 / shape.group);
    shape.channels = std::clamp(ceilDiv(steps, blocks), 1, 8);
    return shape;
}

}  // namespace

bool fitsStaged(Params const& p, Shape shape, Device const& device) noexcept {
    if (p.dtype != DType::kFloat16 || p.state != 1 || !isAligned(p)) return false;
    int const run = runOf(p);
    if (shape.group == 0) return defaultShape(p, run, withDefaultMemory(device)).group > 0;
    return geometry(p, shape, run, device).step_channels > 0;
}

cudaError_t launchStaged(Params const& p, Shape shape, Device const& device, cudaStream_t stream,
                         Launch* description) noexcept {
    int const run = runOf(p);
    Device const memory = shape.group == 0 ? withDefaultMemory(device) : device;
    if (shape.group == 0) shape = defaultShape(p, run, memory);
    Geometry const g = geometry(p, shape, run, memory);
    if (g.step_channels == 0) return cudaErrorInvalidValue;
    bool const matrix = isMatrix(p, run);
    switch (run) {
        case 8:
            return matrix ? launchRun<8, 8, true>(p, g, shape.group, stream, description)
                          : launchRun<8, 8, false>(p, g, shape.group, stream, description);
        case 10:
            return matrix ? launchRun<10, 2, true>(p, g, shape.group, stream, description)
                          : launchRun<10, 2, false>(p, g, shape.group, stream, description);
        case 12:
            return matrix ? launchRun<12, 4, true>(p, g, shape.group, stream, description)
                          : launchRun<12, 4, false>(p, g, shape.group, stream, description);
        case 14:
            return matrix ? launchRun<14, 2, true>(p, g, shape.group, stream, description)
                          : launchRun<14, 2, false>(p, g, shape.group, stream, description);
        default:
            return launchRun<7, 1, false>(p, g, shape.group, stream, description);
    }
}

}  // namespace stormrt::selective_scan_2d

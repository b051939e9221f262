// SPDX-License-Identifier: Apache-2.0
// SelectiveScan2D for any size and type. A block owns a few channels of one image and reads their
// maps once.
//
// A scan direction visits its positions as a list of segments of kSegment positions, one thread a
// segment. The threads of half a block (a "group") take the list band by band: each thread runs its
// segment from a zero state, the group scans the segments' (decay, state) pairs, and each thread
// adds what the state before its segment contributes. Two groups work at once, on the forward and
// the backward direction, first by rows (k = 0, 2), then by columns (k = 1, 3); they meet in the
// middle of the list. Their results are summed in shared memory in FP32, in a fixed order, and
// written once.
//
// Channels of a block lie one behind the other in the list. A segment that begins a channel has the
// decay 0, which cuts it off from the one before: no thread is idle because a map is small.
//
// Along a column a thread's positions are W apart; neighbouring threads take neighbouring columns,
// so that loads are coalesced, and only the pairs are put into the list's order, through shared
// memory.
//
// The scan over pairs is Kogge and Stone's within a warp (1973), serial over warps and bands.
// Decays are only multiplied, never divided by.

#include <algorithm>
#include <cmath>

#include "selective_scan_2d/arithmetic.cuh"
#include "selective_scan_2d/launches.h"

namespace stormrt::selective_scan_2d {
namespace {

constexpr int kMaxGroup = 256;
constexpr int kMaxWarps = kMaxGroup / kWarp;

struct Geometry {
    int channels;            //!< D
    int height;              //!< H
    int width;               //!< W
    int length;              //!< L = H * W
    int state;               //!< N
    int channel_block;       //!< channels of a block
    int blocks_a_image;      //!< blocks that share an image
    int plane_stride;        //!< floats between channels in the shared accumulator: whole segments
    int row_segments;        //!< segments of one channel by rows
    int col_segments;        //!< segments of one column
    int band_columns;        //!< columns of a band
    int accumulator_floats;  //!< of shared memory, gaps included
    int exchange_pairs;      //!< of shared memory for a group, gaps included
    Divisor by_row_segments;
    Divisor by_width;
    Divisor by_band_threads;  //!< by the threads of one segment row of a band
    Divisor by_length;
};

template <typename T>
struct Io;

template <>
struct Io<float> {
    static __device__ float toFloat(float v) { return v; }
    static __device__ float fromFloat(float v) { return v; }
    // Exact to an ulp or two: FP32 results are compared with FP64.
    static __device__ float exp2(float v) { return ::exp2f(v); }
    static __device__ float log2OnePlusExp2(float z) {
        return z > 64.0F ? z : ::log1pf(::exp2f(z)) * kLog2E;
    }
};

template <>
struct Io<__half> {
    static __device__ float toFloat(__half v) { return __half2float(v); }
    static __device__ __half fromFloat(float v) { return __float2half_rn(v); }
    static __device__ float exp2(float v) { return fastExp2(v); }
    static __device__ float log2OnePlusExp2(float z) { return fastLog2OnePlusExp2(z); }
};

struct Shared {
    float2 warp_totals[2][2][kMaxWarps];  //!< [buffer][group][warp]
    float band_state[2][2][kMaxState];    //!< [step parity][group][n]
};

//! The state before each thread's pair, for the pairs of a group in visiting order.
__device__ __forceinline__ float scanPairs(float decay, float state, Shared& shared, int group,
                                           int threads, int n, int buffer, int parity) {
    int const thread = threadIdx.x - group * threads;
    int const lane = thread % kWarp;
    int const warp = thread / kWarp;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
        float const d = __shfl_up_sync(0xffffffffU, decay, offset);
        float const s = __shfl_up_sync(0xffffffffU, state, offset);
        if (lane >= offset) {
            state = fmaf(decay, s, state);
            decay *= d;
        }
    }
    if (lane == kWarp - 1) shared.warp_totals[buffer][group][warp] = make_float2(decay, state);
    float const d = __shfl_up_sync(0xffffffffU, decay, 1);
    float const s = __shfl_up_sync(0xffffffffU, state, 1);
    groupBarrier(group, threads);
    float before = shared.band_state[parity][group][n];
    for (int w = 0; w < warp; ++w) {
        float2 const total = shared.warp_totals[buffer][group][w];
        before = fmaf(total.x, before, total.y);
    }
    if (thread == threads - 1) {
        shared.band_state[parity ^ 1][group][n] = fmaf(decay, before, state);
    }
    return lane == 0 ? before : fmaf(d, before, s);
}

//! How a kernel cuts the maps. By rows a thread has kRowLength positions in a row-major run; by
//! columns it has kColLength rows of kPair neighbouring columns.
template <typename T_, bool kOneState_, int kVector_, int kRowLength_, int kColLength_, int kPair_,
          bool kWhole_ = false, bool kShared_ = true>
struct Cut {
    using T = T_;
    static constexpr bool kOneState = kOneState_;
    static constexpr bool kWhole = kWhole_;  //!< no run reaches past the map's end
    //! The sum is in shared memory, in FP32; else in y itself, for maps that are too large for
    //! that.
    static constexpr bool kShared = kShared_;
    static constexpr int kVector = kVector_;  //!< L is a multiple of it
    static constexpr int kRowLength = kRowLength_;
    static constexpr int kColLength = kColLength_;
    static constexpr int kPair = kPair_;  //!< W is a multiple of it
};

//! Where a thread's positions are in a band.
struct Place {
    int channel;   //!< in the block
    int position;  //!< of the first element in the map
    int count;     //!< positions of a run that are inside; 0: nothing to do
    int rank;      //!< of the first run among the band's, in visiting order
    int begins;    //!< the part that begins a channel, in visiting order; -1: none
};

//! Shared memory without bank conflicts: a gap after every 32 floats of the accumulator, so that
//! runs of 16 begin in different banks, and one after every 16 pairs of the exchange.
__device__ __forceinline__ int accumulatorIndex(int i) { return i + (i >> 5) * 4; }
__device__ __forceinline__ int exchangeIndex(int rank) { return rank + (rank >> 4); }

//! One direction: operands and scan of a thread's positions.
template <typename C, bool kByRows, bool kReverse>
struct Direction {
    using T = typename C::T;
    static constexpr int kIndex = (kByRows ? 0 : 1) + (kReverse ? 2 : 0);
    static constexpr int kParts = kByRows ? 1 : C::kPair;  //!< runs of this thread
    static constexpr int kLength = kByRows ? C::kRowLength : C::kColLength;  //!< of a run
    static constexpr int kValues = kParts * kLength;
    //! Values to a load.
    static constexpr int kWidth =
        !kByRows ? C::kPair : (C::kVector * sizeof(T) > 16 ? 16 / sizeof(T) : C::kVector);
    static constexpr int kLoads = kValues / kWidth;
    using Load = typename Chunk<kWidth * sizeof(T)>::type;

    //! The operands of a thread's positions: by rows in order, by columns row by row.
    union Raw {
        Load loads[kLoads];
        T values[kValues];
        __device__ Raw() {}
        __device__ __forceinline__ float at(int part, int i) const {
            return Io<T>::toFloat(values[kByRows ? i : i * kParts + part]);
        }
    };

    Params const& p;
    Geometry const& g;
    Shared& shared;
    float2* exchange;  //!< kPair pairs a thread of the group
    int group;
    int threads;
    int image;
    int first_channel;
    int channels;  //!< of this block: the last block of an image may have fewer

    __device__ __forceinline__ int bands() const {
        int const total = kByRows ? channels * g.row_segments : channels * g.width;
        int const size = kByRows ? threads : g.band_columns;
        return (total + size - 1) / size;
    }

    __device__ __forceinline__ Place locate(int band) const {
        int const thread = threadIdx.x - group * threads;
        Place at{};
        if constexpr (kByRows) {
            int const start = band * threads;
            int const size = min(threads, channels * g.row_segments - start);
            int const segment = max(0, kReverse ? start + size - 1 - thread : start + thread);
            at.channel = g.by_row_segments.quotient(segment);
            int const own = segment - at.channel * g.row_segments;
            at.position = own * kLength;
            at.count = thread < size ? min(kLength, g.length - at.position) : 0;
            at.begins = own == (kReverse ? g.row_segments - 1 : 0) ? 0 : -1;
        } else {
            int const start = band * g.band_columns;
            int const size = min(g.band_columns, channels * g.width - start);
            // Neighbouring threads take neighbouring columns of one segment row. A thread without
            // columns still has ranks of its own, behind the others.
            int const piece = g.by_band_threads.quotient(thread);
            int const offset = (thread - piece * (g.band_columns / kParts)) * kParts;
            bool const active = piece < g.col_segments && offset < size;
            int const order = offset * g.col_segments + piece;
            at.rank = piece < g.col_segments ? order : thread * kParts;
            if (kReverse && active) at.rank = size * g.col_segments - 1 - order;
            int const column = start + offset;
            at.channel = g.by_width.quotient(column);
            int const w = column - at.channel * g.width;
            at.position = piece * kLength * g.width + w;
            at.count = active ? min(kLength, g.height - piece * kLength) : 0;
            at.begins = -1;
            if (!kReverse && w == 0 && piece == 0) at.begins = 0;
            if (kReverse && w == g.width - kParts && piece == g.col_segments - 1) {
                at.begins = kParts - 1;
            }
        }
        if (at.count <= 0) {
            at.count = at.channel = at.position = 0;
            at.begins = -1;
        }
        return at;
    }

    //! Where the run of a part is in the exchange, in visiting order.
    __device__ __forceinline__ int slotOf(Place const& at, int part) const {
        if (kParts == 1 || part == 0) return exchangeIndex(at.rank);
        bool const idle = at.count == 0 && at.rank >= g.band_columns * g.col_segments;
        int const step = idle ? 1 : g.col_segments;
        return exchangeIndex(kReverse && at.count > 0 ? at.rank - step : at.rank + step);
    }

    //! Loads never leave the map: past its end a thread reads its last positions again. Offsets
    //! are of 32 bits, which isValid() has made sure of.
    __device__ __forceinline__ void load(Raw& raw, Place const& at, void const* base,
                                         int plane) const {
        char const* const bytes = static_cast<char const*>(base);
        uint32_t const from = static_cast<uint32_t>(plane * g.length + at.position) * sizeof(T);
        int const last = max(kByRows ? (at.count + kWidth - 1) / kWidth : at.count, 1) - 1;
        size_t const stride = (kByRows ? kWidth : g.width) * sizeof(T);
        char const* next = bytes + from;
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            raw.loads[i] = __ldg(reinterpret_cast<Load const*>(next));
            if (C::kWhole || i < last) next += stride;
        }
    }

    __device__ __forceinline__ void loadState(Raw& raw_b, Raw& raw_c, Place const& at,
                                              int n) const {
        int const plane = (image * kDirections + kIndex) * (C::kOneState ? 1 : g.state) + n;
        load(raw_b, at, p.b, plane);
        load(raw_c, at, p.c, plane);
    }

    //! The operands of a band.
    struct Operands {
        Raw x, dt, b, c;
    };

    __device__ __forceinline__ void fetch(Operands& raw, Place const& at) const {
        int const channel = first_channel + at.channel;
        load(raw.dt, at, p.dt, (image * kDirections + kIndex) * g.channels + channel);
        load(raw.x, at, p.x, image * g.channels + channel);
        if (C::kOneState) loadState(raw.b, raw.c, at, 0);
    }

    //! y gets what this direction adds at each position, divided by ln 2. `prefetch` is called when
    //! the operands have been used, before the group waits for its pairs.
    template <typename Prefetch>
    __device__ __forceinline__ void run(int step, Place const& at, Operands& raw,
                                        float (&y)[kParts][kLength],
                                        Prefetch const& prefetch) const {
        int const row = kIndex * g.channels + first_channel + at.channel;  // of a, d, dt_bias
        float const bias = __ldg(p.dt_bias + row) * kLog2E;
        float l[kParts][kLength];   // log2(e) softplus(dt + bias)
        float lx[kParts][kLength];  // l x
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
#pragma unroll
            for (int i = 0; i < kLength; ++i) {
                l[part][i] = Io<T>::log2OnePlusExp2(fmaf(raw.dt.at(part, i), kLog2E, bias));
                lx[part][i] = l[part][i] * raw.x.at(part, i);
                y[part][i] = 0.0F;
            }
        }
        if (!C::kWhole && at.count < kLength) {
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
#pragma unroll
                for (int i = 0; i < kLength; ++i) {
                    // The identity of the recurrence: decay 1, drive 0.
                    if (i >= at.count) l[part][i] = lx[part][i] = 0.0F;
                }
            }
        }
        int const states = C::kOneState ? 1 : g.state;
        for (int n = 0; n < states; ++n) {
            if (!C::kOneState) loadState(raw.b, raw.c, at, n);
            float const a = __ldg(p.a + row * states + n);
            float2 pairs[kParts];            // decay and state of each run
            float through[kParts][kLength];  // c times the decay since the run began
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                float decay = 1.0F;
                float state = 0.0F;
#pragma unroll
                for (int j = 0; j < kLength; ++j) {
                    int const i = kReverse ? kLength - 1 - j : j;
                    float const d = Io<T>::exp2(a * l[part][i]);
                    float const c = raw.c.at(part, i);
                    state = fmaf(d, state, lx[part][i] * raw.b.at(part, i));
                    decay *= d;
                    y[part][i] = fmaf(c, state, y[part][i]);
                    through[part][i] = c * decay;
                }
                // A decay of 0 cuts a channel off from the one before it in the list; a thread
                // without positions hands on what it gets.
                if (C::kWhole && at.count == 0) {
                    decay = 1.0F;
                    state = 0.0F;
                }
                pairs[part] = make_float2(at.begins == part ? 0.0F : decay, state);
            }
            if (n == states - 1) prefetch();
            float before[kParts];
            statesBefore(at, pairs, before, step, n, states);
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                if (at.begins == part) before[part] = 0.0F;
#pragma unroll
                for (int i = 0; i < kLength; ++i) {
                    y[part][i] = fmaf(through[part][i], before[part], y[part][i]);
                }
            }
        }
    }

    __device__ __forceinline__ void statesBefore(Place const& at, float2 const (&pairs)[kParts],
                                                 float (&before)[kParts], int step, int n,
                                                 int states) const {
        int const buffer = (C::kOneState ? step : step * states + n) & 1;
        if constexpr (kByRows) {
            before[0] =
                scanPairs(pairs[0].x, pairs[0].y, shared, group, threads, n, buffer, step & 1);
        } else {
            int const first = (threadIdx.x - group * threads) * kParts;
            float2* const own = exchange + exchangeIndex(first);  // its parts are neighbours
#pragma unroll
            for (int part = 0; part < kParts; ++part) exchange[slotOf(at, part)] = pairs[part];
            groupBarrier(group, threads);
            float2 list[kParts];
            float decay = 1.0F;
            float state = 0.0F;
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                list[part] = own[part];
                state = fmaf(list[part].x, state, list[part].y);
                decay *= list[part].x;
            }
            state = scanPairs(decay, state, shared, group, threads, n, buffer, step & 1);
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                own[part].x = state;
                state = fmaf(list[part].x, state, list[part].y);
            }
            groupBarrier(group, threads);
#pragma unroll
            for (int part = 0; part < kParts; ++part) before[part] = exchange[slotOf(at, part)].x;
        }
    }

    //! Adds ln 2 * y, and what skips the scan, to the block's sum, or puts it there on the first
    //! visit.
    __device__ __forceinline__ void accumulate(Place const& at, float* total,
                                               float const (&y)[kParts][kLength],
                                               float const (&skipped)[kLength],
                                               bool first_visit) const {
        if (at.count == 0) return;
        int const first = at.channel * g.plane_stride + at.position;
        if constexpr (!C::kShared) {
            static_assert(kParts == 1, "one run a thread");
            T* const sum = static_cast<T*>(p.y) + (image * g.channels + first_channel) * g.length;
            int const stride = kByRows ? 1 : g.width;
#pragma unroll
            for (int i = 0; i < kLength; ++i) {
                if (i >= at.count) break;
                T* const to = sum + first + i * stride;
                float v = fmaf(y[0][i], kLn2, first_visit ? 0.0F : Io<T>::toFloat(*to));
                if (kByRows && !kReverse) v += skipped[i];
                *to = Io<T>::fromFloat(v);
            }
        } else if constexpr (kByRows) {
            // A channel has room for whole runs.
            float4* const to4 = reinterpret_cast<float4*>(total + accumulatorIndex(first));
#pragma unroll
            for (int i = 0; i < kLength; i += 4) {
                float4 v = first_visit ? float4{} : to4[i / 4];
                float* const values = &v.x;
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    values[j] = fmaf(y[0][i + j], kLn2, values[j]);
                    if (!kReverse) values[j] += skipped[i + j];
                }
                to4[i / 4] = v;
            }
        } else {
#pragma unroll
            for (int i = 0; i < kLength; ++i) {
                if (!C::kWhole && i >= at.count) break;
                float* const to = total + accumulatorIndex(first + i * g.width);
                if constexpr (kParts == 2) {
                    float2* const to2 = reinterpret_cast<float2*>(to);
                    float2 v = *to2;
                    v.x = fmaf(y[0][i], kLn2, v.x);
                    v.y = fmaf(y[1][i], kLn2, v.y);
                    *to2 = v;
                } else {
                    *to = fmaf(y[0][i], kLn2, *to);
                }
            }
        }
    }
};

//! Both directions along one axis: group 0 forward, group 1 backward, meeting in the middle.
template <typename C, bool kByRows, bool kReverse>
__device__ __forceinline__ void sweep(Params const& p, Geometry const& g, Shared& shared,
                                      float2* exchange, float* total, int group, int threads,
                                      int image, int first_channel, int channels) {
    using Dir = Direction<C, kByRows, kReverse>;
    Dir const dir{p, g, shared, exchange, group, threads, image, first_channel, channels};
    int const bands = dir.bands();
    int const states = C::kOneState ? 1 : g.state;
    int const thread = threadIdx.x - group * threads;
    if (thread < states) shared.band_state[0][group][thread] = 0.0F;
    __syncthreads();
    Place next = dir.locate(kReverse ? bands - 1 : 0);
    typename Dir::Operands raw;
    dir.fetch(raw, next);
    for (int step = 0; step < bands; ++step) {
        int const band = kReverse ? bands - 1 - step : step;
        int const other = bands - 1 - band;  // the band that the other group is at
        Place const at = next;
        float skipped[Dir::kLength];
        if (kByRows && !kReverse) {
            int const channel = first_channel + at.channel;
            float skip = 0.0F;
#pragma unroll
            for (int k = 0; k < kDirections; ++k) skip += __ldg(p.d + k * g.channels + channel);
#pragma unroll
            for (int i = 0; i < Dir::kLength; ++i) skipped[i] = skip * raw.x.at(0, i);
        }
        float y[Dir::kParts][Dir::kLength];
        dir.run(step, at, raw, y, [&] {
            if (step + 1 < bands) {
                next = dir.locate(kReverse ? band - 1 : band + 1);
                dir.fetch(raw, next);
            }
        });
        // Forward comes to a band first if it is in the first half of the list, or in its middle.
        bool const first_visit = kByRows && (kReverse ? band > other : band <= other);
        if (kReverse && band == other) __syncthreads();
        dir.accumulate(at, total, y, skipped, first_visit);
        if (!kReverse && band == other) __syncthreads();
        __syncthreads();
    }
}

template <typename C>
__global__ void __launch_bounds__(2 * kMaxGroup) bandedScan(Params const p, Geometry const g) {
    using T = typename C::T;
    extern __shared__ float4 dynamic[];
    __shared__ Shared shared;
    int const threads = blockDim.x / 2;
    int const group = threadIdx.x / threads;
    int const image = blockIdx.x / g.blocks_a_image;
    int const first_channel = (blockIdx.x - image * g.blocks_a_image) * g.channel_block;
    int const channels = min(g.channel_block, g.channels - first_channel);
    float* const total = reinterpret_cast<float*>(dynamic);
    float2* const exchange =
        reinterpret_cast<float2*>(total + g.accumulator_floats) + group * g.exchange_pairs;

    if (group == 0) {
        sweep<C, true, false>(p, g, shared, exchange, total, group, threads, image, first_channel,
                              channels);
        sweep<C, false, false>(p, g, shared, exchange, total, group, threads, image, first_channel,
                               channels);
    } else {
        sweep<C, true, true>(p, g, shared, exchange, total, group, threads, image, first_channel,
                             channels);
        sweep<C, false, true>(p, g, shared, exchange, total, group, threads, image, first_channel,
                              channels);
    }

    if constexpr (!C::kShared) return;
    // The block's channels are one stretch of y.
    T* const y = static_cast<T*>(p.y) + (image * g.channels + first_channel) * g.length;
    constexpr int kOut = C::kVector >= 4 ? 4 : 1;
    using Out = typename Chunk<kOut * sizeof(T)>::type;
    for (int i = threadIdx.x * kOut; i < channels * g.length; i += blockDim.x * kOut) {
        int const channel = g.by_length.quotient(i);
        int const first = i + channel * (g.plane_stride - g.length);
        union {
            T values[kOut];
            Out chunk;
        } out;
#pragma unroll
        for (int j = 0; j < kOut; ++j) {
            out.values[j] = Io<T>::fromFloat(total[accumulatorIndex(first + j)]);
        }
        *reinterpret_cast<Out*>(y + i) = out.chunk;
    }
}

template <typename C>
Geometry geometry(Params const& p, Shape const& t) {
    Geometry g{};
    g.channels = p.channels;
    g.height = p.height;
    g.width = p.width;
    g.length = p.height * p.width;
    g.state = p.state;
    g.channel_block = t.channels;
    g.blocks_a_image = ceilDiv(p.channels, t.channels);
    g.row_segments = ceilDiv(g.length, C::kRowLength);
    g.plane_stride = C::kShared ? g.row_segments * C::kRowLength : g.length;
    g.col_segments = ceilDiv(p.height, C::kColLength);
    g.band_columns = t.group / g.col_segments * C::kPair;
    int const floats = C::kShared ? g.channel_block * g.plane_stride : 0;
    g.accumulator_floats = (floats + (floats / 32 + 1) * 4 + 3) / 4 * 4;
    int const pairs = t.group * C::kPair;
    g.exchange_pairs = pairs + pairs / 16 + 1;
    g.by_row_segments = divisor(g.row_segments);
    g.by_width = divisor(g.width);
    g.by_band_threads = divisor(std::max(1, g.band_columns / C::kPair));
    g.by_length = divisor(g.length);
    return g;
}

template <typename C>
size_t sharedBytes(Geometry const& g) {
    return g.accumulator_floats * sizeof(float) + 2U * g.exchange_pairs * sizeof(float2);
}

//! A shape for a call of which nothing was measured: some three bands of work a block, fewer where
//! multiprocessors would be idle, shared memory that every GPU has.
template <typename C>
Shape defaultShape(Params const& p, Device const& device) {
    int const segments = ceilDiv(p.height * p.width, C::kRowLength);
    Shape t{};
    t.group = segments <= 64 ? 64 : segments <= 256 ? 128 : 256;
    t.group = std::max(t.group, ceilDiv(ceilDiv(p.height, C::kColLength), kWarp) * kWarp);
    // 3.2 bands: measured on an H100, at the four stages of VMamba-T (benchmarks/plugins.py).
    t.channels = std::clamp(ceilDiv(16 * t.group, 5 * segments), 1, std::min(32, p.channels));
    for (int more = t.channels; more <= t.channels * 3 / 2; ++more) {
        if (p.channels % more == 0) {
            t.channels = more;
            break;
        }
    }
    auto const bytes = [&] { return sharedBytes<C>(geometry<C>(p, t)) + sizeof(Shared); };
    while (t.channels > 1 && bytes() > static_cast<size_t>(kDefaultSharedBytes)) {
        --t.channels;
    }
    auto const blocks = [&] { return p.batch * ceilDiv(p.channels, t.channels); };
    while (t.channels > 1 && blocks() < 2 * device.multiprocessors) t.channels /= 2;
    if (t.channels == 1 && blocks() < device.multiprocessors) {
        t.group = std::clamp(ceilDiv(segments, kWarp) * kWarp, t.group, kMaxGroup);
    }
    return t;
}

template <typename C>
cudaError_t launchAs(Params const& p, Shape shape, Device const& device, cudaStream_t stream,
                     Launch* description) {
    // A group has to span a column.
    if (shape.group < ceilDiv(p.height, C::kColLength)) shape = defaultShape<C>(p, device);
    // Then a block's elements are among dt's, and are as few as 31 bits can count.
    shape.channels = std::min(shape.channels, p.channels);
    Geometry const g = geometry<C>(p, shape);
    size_t const bytes = sharedBytes<C>(g);
    if (bytes + sizeof(Shared) > static_cast<size_t>(device.shared_bytes)) {
        Shape const chosen = defaultShape<C>(p, device);
        if (shape.channels > chosen.channels)
            return launchAs<C>(p, chosen, device, stream, description);
        if constexpr (C::kShared) {
            using Large = Cut<typename C::T, false, 1, 8, 8, 1, false, false>;
            return launchAs<Large>(p, Shape{}, device, stream, description);
        }
        return cudaErrorInvalidValue;
    }
    auto const kernel = bandedScan<C>;
    if (description != nullptr) {
        *description = {"banded", p.batch * g.blocks_a_image, 2 * shape.group,
                        static_cast<int>(bytes), reinterpret_cast<void const*>(kernel)};
        return cudaSuccess;
    }
    if (bytes + sizeof(Shared) > static_cast<size_t>(kDefaultSharedBytes)) {
        cudaError_t const status = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
        if (status != cudaSuccess) return status;
    }
    kernel<<<p.batch * g.blocks_a_image, 2 * shape.group, bytes, stream>>>(p, g);
    return cudaGetLastError();
}

//! Whether runs of 7 leave fewer threads idle than runs of 8.
bool prefersSeven(int height) { return ceilDiv(height, 7) * 7 < ceilDiv(height, 8) * 8; }

template <int kVector, int kRowLength, int kPair, bool kWhole>
cudaError_t launchHalf(Params const& p, Shape const& shape, Device const& device,
                       cudaStream_t stream, Launch* description) {
    if (prefersSeven(p.height)) {
        return launchAs<Cut<__half, true, kVector, kRowLength, 7, kPair, kWhole>>(
            p, shape, device, stream, description);
    }
    return launchAs<Cut<__half, true, kVector, kRowLength, 8, kPair, kWhole>>(p, shape, device,
                                                                              stream, description);
}

}  // namespace

cudaError_t launchBanded(Params const& p, Shape shape, Device const& device, cudaStream_t stream,
                         Launch* description) noexcept {
    int const length = p.height * p.width;
    bool const four = length % 4 == 0 && isAligned(p);
    if (p.dtype == DType::kFloat16 && p.state == 1) {
        bool const pairs = p.width % 2 == 0;
        bool const whole =
            length % 16 == 0 && (p.height % 8 == 0 || p.height % 7 == 0) && pairs && four;
        if (whole) return launchHalf<8, 16, 2, true>(p, shape, device, stream, description);
        if (four) return launchHalf<4, 16, 1, false>(p, shape, device, stream, description);
        return launchHalf<1, 8, 1, false>(p, shape, device, stream, description);
    }
    if (p.dtype == DType::kFloat16) {
        return four
                   ? launchAs<Cut<__half, false, 4, 8, 8, 1>>(p, shape, device, stream, description)
                   : launchAs<Cut<__half, false, 1, 8, 8, 1>>(p, shape, device, stream,
                                                              description);
    }
    if (p.state == 1) {
        return four ? launchAs<Cut<float, true, 4, 8, 8, 1>>(p, shape, device, stream, description)
                    : launchAs<Cut<float, true, 1, 8, 8, 1>>(p, shape, device, stream, description);
    }
    return four ? launchAs<Cut<float, false, 4, 8, 8, 1>>(p, shape, device, stream, description)
                : launchAs<Cut<float, false, 1, 8, 8, 1>>(p, shape, device, stream, description);
}

}  // namespace stormrt::selective_scan_2d

// SPDX-License-Identifier: Apache-2.0
// SHA-256 (FIPS 180-4) of a file, for engine.hpp: small, and quick enough for a plan.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <string>

namespace stormrt::detail {

class Sha256 {
public:
    void update(unsigned char const* data, std::size_t size) {
        total_ += size;
        while (size > 0) {
            std::size_t const part = std::min(size, block_.size() - filled_);
            std::copy(data, data + part, block_.begin() + static_cast<std::ptrdiff_t>(filled_));
            filled_ += part;
            data += part;
            size -= part;
            if (filled_ == block_.size()) {
                compress();
                filled_ = 0;
            }
        }
    }

    std::string hex() {
        std::uint64_t const bits = total_ * 8;
        unsigned char const one = 0x80;
        unsigned char const zero = 0;
        update(&one, 1);
        while (filled_ != block_.size() - 8) {
            update(&zero, 1);
        }
        for (int shift = 56; shift >= 0; shift -= 8) {
            auto const byte = static_cast<unsigned char>(bits >> shift);
            update(&byte, 1);
        }
        std::string text;
        for (std::uint32_t const word : state_) {
            for (int shift = 28; shift >= 0; shift -= 4) {
                text += "0123456789abcdef"[(word >> shift) & 15U];
            }
        }
        return text;
    }

private:
    static std::uint32_t rotate(std::uint32_t x, int count) {
        return (x >> count) | (x << (32 - count));
    }

    void compress() {
        static constexpr std::array<std::uint32_t, 64> kConstants = {
            0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
            0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
            0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
            0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
            0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
            0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
            0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
            0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
            0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
            0xc67178f2};
        std::array<std::uint32_t, 64> w{};
        for (std::size_t i = 0; i < 16; ++i) {
            w[i] = static_cast<std::uint32_t>(block_[4 * i]) << 24 |
                   static_cast<std::uint32_t>(block_[4 * i + 1]) << 16 |
                   static_cast<std::uint32_t>(block_[4 * i + 2]) << 8 | block_[4 * i + 3];
        }
        for (std::size_t i = 16; i < 64; ++i) {
            std::uint32_t const x = w[i - 15];
            std::uint32_t const y = w[i - 2];
            w[i] = w[i - 16] + w[i - 7] + (rotate(x, 7) ^ rotate(x, 18) ^ (x >> 3)) +
                   (rotate(y, 17) ^ rotate(y, 19) ^ (y >> 10));
        }
        auto [a, b, c, d, e, f, g, h] = state_;
        for (std::size_t i = 0; i < 64; ++i) {
            std::uint32_t const first = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
                                        ((e & f) ^ (~e & g)) + kConstants[i] + w[i];
            std::uint32_t const second =
                (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g;
            g = f;
            f = e;
            e = d + first;
            d = c;
            c = b;
            b = a;
            a = first + second;
        }
        std::array<std::uint32_t, 8> const done = {a, b, c, d, e, f, g, h};
        for (std::size_t i = 0; i < state_.size(); ++i) {
            state_[i] += done[i];
        }
    }

    std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                           0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, 64> block_{};
    std::size_t filled_ = 0;
    std::uint64_t total_ = 0;
};

// Of a file's bytes, hexadecimal; empty where it cannot be read.
inline std::string sha256File(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        return {};
    }
    Sha256 digest;
    std::array<char, 1 << 16> chunk{};
    while (file.read(chunk.data(), chunk.size()) || file.gcount() > 0) {
        digest.update(reinterpret_cast<unsigned char const*>(chunk.data()),
                      static_cast<std::size_t>(file.gcount()));
    }
    return file.bad() ? std::string{} : digest.hex();
}

}  // namespace stormrt::detail

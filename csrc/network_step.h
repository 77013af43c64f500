// What network.cpp hands to the steps of network_lanes.h.
#pragma once

#include "network.h"

namespace stablerep {

constexpr int64_t kPanel = 48;   // columns of a panel of weights
constexpr int64_t kTiles = 32;   // Winograd tiles at once: their transforms stay in the second-level cache
constexpr int64_t kTokens = 64;  // rows at once where a step holds what lies between two products
constexpr int64_t kQueries = 32;

struct StepRows {
    const float* in;
    float* out;
    const float *residual, *key, *value, *bias;  // may be null
    const int64_t* text_rows;                    // [rows]; may be null
    float* scratch;
    int64_t in_stride, out_stride, residual_stride;  // floats from pixel to pixel; key and value have in_stride
    int64_t rows, pixels;                            // pictures; pixels of each, in the input map
};

struct ConvShape {
    int64_t tiles_high, tiles_wide, padded_width, plane;  // plane: pixels with their zeros around
    int64_t in_apart, out_apart;  // floats from position to position; off powers of two, which share cache lines
};

inline __attribute__((always_inline)) int64_t rounded_up(int64_t count) { return (count + 15) / 16 * 16; }

inline __attribute__((always_inline)) ConvShape conv_shape(const NetworkStep& step) {
    const int64_t high = (step.height + 3) / 4, wide = (step.width + 3) / 4;
    return {high, wide, 4 * wide + 2, (4 * high + 2) * (4 * wide + 2), kTiles * step.in_channels + 16,
            kTiles * step.out_channels + 16};
}

namespace lanes16 { void run_step(const NetworkStep& step, const StepRows& rows); }
namespace lanes8 { void run_step(const NetworkStep& step, const StepRows& rows); }
namespace lanes4 { void run_step(const NetworkStep& step, const StepRows& rows); }

}  // namespace stablerep

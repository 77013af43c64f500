// The arithmetic of one number in a denoising step, the same digits on host and device (compiled without fused
// multiply-add on both).
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace stablerep {

// x0 = a x + b output; x <- c x + d x0 + e previous_x0.
struct SolverRow {
    float a, b, c, d, e;
};

// Row `step` of table [steps, 5]; outside it NaN, which no picture survives unseen.
STABLEREP_HOST_DEVICE SolverRow solver_row(const float* table, int64_t steps, int64_t step) {
    if (step < 0 || step >= steps) return {NAN, NAN, NAN, NAN, NAN};
    const float* const row = table + 5 * step;
    return {row[0], row[1], row[2], row[3], row[4]};
}

// torch.lerp: of its two forms each is exact where it is used, at 0 and at 1.
STABLEREP_HOST_DEVICE float guide(float without, float with_text, float scale) {
    const float difference = with_text - without;
    return fabsf(scale) < 0.5f ? without + scale * difference : with_text - difference * (1.0f - scale);
}

struct Solved {
    float next, x0;
};

// Where e is 0 the caller gives 0 for previous_x0.
STABLEREP_HOST_DEVICE Solved solve(const SolverRow& row, float x, float output, float previous_x0) {
    const float x0 = row.a * x + row.b * output;
    return {row.c * x + row.d * x0 + row.e * previous_x0, x0};
}

}  // namespace stablerep

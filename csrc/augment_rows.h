// Loops over one row of a picture for augment.cpp, compiled for several vector widths; the one that fits runs.
// A planar row is [3][stride] floats; strides and counts are multiples of kLane, so that no loop has a rest.
#pragma once

#include <cstdint>

#include "augment.h"

namespace stablerep::rows {

constexpr int kLane = 16;

// out[i] = sum over rows k of weights[k] * bytes[k * pitch + i], i < n.
void mix(const uint8_t* bytes, int64_t pitch, const float* weights, int count, int n, float* out);

// [n][3] -> three runs of n.
void split(const float* in, int n, float* r, float* g, float* b);

// out[c][x] = sum over k of weights[k][x] * in_c[first[x] + k]. base[x / 16]: the least of 16 firsts, or null where
// 16 outputs reach further than 32 inputs.
struct Columns {
    const int32_t* first;   // [stride]
    const int32_t* base;    // [stride / 16]
    const float* weights;   // [taps][stride]
    int taps, stride;
};
void resample(const float* const in[3], const Columns& columns, float* row);

void brighten(float* row, int stride, float factor);
void add_contrast(float* row, int stride, float factor, float mean);
void saturate(float* row, int stride, float factor);
void turn_hue(float* row, int stride, float turns);
void make_grey(float* row, int stride);
double sum_of_grey(const float* row, int stride);

// weights[d], d = 0 .. radius; padded: scratch of stride + 2 * radius + 2 * kLane.
void blur_across(const float* row, int stride, int size, const float* weights, int radius, float* padded, float* out);
// in[radius + d]: the row d below.
void blur_down(const float* const* in, int stride, const float* weights, int radius, float* out);

// out[c][x] = factor[c] * row[c][x] + offset[c]: `size` elements of a type, each channel `plane` elements after the last;
// plane = 0: channels side by side.
void store(const float* row, int stride, int size, const float factor[3], const float offset[3], AugmentOutput type,
           int64_t plane, void* out);

}  // namespace stablerep::rows

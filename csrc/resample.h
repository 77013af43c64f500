// Antialiased bilinear resizing as torch defines it (F.interpolate, antialias=True, align_corners=False), and rounding
// to grey levels; the same digits on host and device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace stablerep {

// One axis: from size numbers to others, each the mean of a window under a triangle of half-width `support`.
struct ResampledAxis {
    int size;
    float scale, support, inverse;
};

STABLEREP_HOST_DEVICE ResampledAxis make_axis(int size, int resized) {
    const float scale = float(size) / float(resized);
    return {size, scale, scale >= 1.0f ? scale : 1.0f, scale >= 1.0f ? 1.0f / scale : 1.0f};
}

STABLEREP_HOST_DEVICE int widest_window(const ResampledAxis& axis) { return 2 * int(ceilf(axis.support)) + 1; }

struct Window {
    int first, count;
    float centre;
};

STABLEREP_HOST_DEVICE Window window_of(const ResampledAxis& axis, int i) {
    const float centre = axis.scale * (float(i) + 0.5f);
    const int first = int(centre - axis.support + 0.5f);
    const int end = int(centre + axis.support + 0.5f);
    const int begin = first > 0 ? first : 0;
    return {begin, (end < axis.size ? end : axis.size) - begin, centre};
}

// weights[0], weights[stride], ..: window.count of them, with sum 1.
STABLEREP_HOST_DEVICE void fill_weights(const ResampledAxis& axis, const Window& window, float* weights, int stride) {
    float total = 0.0f;
    for (int k = 0; k < window.count; ++k) {
        const float distance = fabsf((float(k + window.first) - window.centre + 0.5f) * axis.inverse);
        const float weight = distance < 1.0f ? 1.0f - distance : 0.0f;
        weights[k * stride] = weight;
        total += weight;
    }
    for (int k = 0; k < window.count; ++k) weights[k * stride] = weights[k * stride] / total;
}

// -1..1 to 0..255, halves to even; NaN to 0.
STABLEREP_HOST_DEVICE uint8_t grey_level(float value) {
    const float scaled = (value + 1.0f) * 127.5f;
    const float not_below = scaled > 0.0f ? scaled : 0.0f;
    const float level = (not_below < 255.0f ? not_below : 255.0f) + 8388608.0f;  // 2^23: the sum has no fraction
    uint32_t bits;
    memcpy(&bits, &level, sizeof bits);
    return uint8_t(bits);
}

}  // namespace stablerep

// The arithmetic of strong augmentation on one pixel, one row of weights, one picture: shared by host and device.
// Floats may be fused here: implementations agree to 1e-5 of the range of colours, not to the last bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "augment.h"
#include "host_device.h"

namespace stablerep {

struct Picture {
    const uint8_t* pixels;  // [height, width, 3]
    int32_t height, width;
};

STABLEREP_HOST_DEVICE Picture picture_of(const Pictures& pictures, int64_t i) {
    if (pictures.table == nullptr) {
        return {pictures.first + i * 3 * pictures.height * pictures.width, pictures.height, pictures.width};
    }
    const int64_t* const row = pictures.table + 3 * i;
    return {reinterpret_cast<const uint8_t*>(row[0]), int32_t(row[1]), int32_t(row[2])};
}

STABLEREP_HOST_DEVICE float fused(float a, float b, float c) {
#ifdef __CUDA_ARCH__
    return fmaf(a, b, c);
#else
    return a * b + c;  // the compiler may fuse it where the processor can
#endif
}

STABLEREP_HOST_DEVICE float clamp01(float x) {
#ifdef __CUDA_ARCH__
    return __saturatef(x);
#else
    x = x > 0.0f ? x : 0.0f;  // in this form each is one vector instruction
    return x < 1.0f ? x : 1.0f;
#endif
}

// ---- antialiased linear resize ----

// The pixels that output i of a resize from `in` to `out` is made of: a triangle, as wide as two output pixels where
// that is more than two input pixels (torch's interpolate, antialias=True).
struct Taps {
    int32_t first, count;
    double centre, narrow, total;

    STABLEREP_HOST_DEVICE double raw(int32_t k) const {
        const double distance = (first + k - centre + 0.5) * narrow;
        const double weight = 1.0 - (distance < 0 ? -distance : distance);
        return weight > 0 ? weight : 0;
    }
    STABLEREP_HOST_DEVICE double weight(int32_t k) const { return raw(k) / total; }
};

STABLEREP_HOST_DEVICE Taps taps_of(int32_t i, int32_t in, int32_t out) {
    const double scale = double(in) / double(out);
    const double support = scale > 1 ? scale : 1;
    Taps taps{};
    taps.centre = scale * (i + 0.5);
    taps.narrow = 1 / support;
    const auto first = int32_t(taps.centre - support + 0.5);  // towards zero, as torch does
    const auto end = int32_t(taps.centre + support + 0.5);
    taps.first = first > 0 ? first : 0;
    taps.count = (end < in ? end : in) - taps.first;
    for (int32_t k = 0; k < taps.count; ++k) taps.total += taps.raw(k);
    return taps;
}

// One axis of the whole way from picture to output: down to `small` and back (0: not), crop, resize, mirror.
// Each step is linear, so they are one: no picture in between.
struct Axis {
    int32_t full, small, offset, crop, out;
    bool mirrored;
};

STABLEREP_HOST_DEVICE Axis axis_of(const AugmentParams& p, const Picture& picture, int32_t out, bool vertical) {
    const int32_t full = vertical ? picture.height : picture.width, other = vertical ? picture.width : picture.height;
    int32_t small = p.small_side;
    if (full > other) small = int32_t(int64_t(p.small_side) * full / other);
    return {full, small, vertical ? p.top : p.left, vertical ? p.height : p.width, out, !vertical && p.flip != 0};
}

struct Span {
    int32_t first, count;  // of input pixels
};

STABLEREP_HOST_DEVICE Span span_of(const Axis& axis, int32_t i) {
    const Taps crop = taps_of(axis.mirrored ? axis.out - 1 - i : i, axis.crop, axis.out);
    int32_t first = axis.offset + crop.first, last = first + crop.count - 1;
    if (axis.small > 0) {
        const Taps up = taps_of(last, axis.small, axis.full);
        first = taps_of(taps_of(first, axis.small, axis.full).first, axis.full, axis.small).first;
        const Taps down = taps_of(up.first + up.count - 1, axis.full, axis.small);
        last = down.first + down.count - 1;
    }
    return {first, last - first + 1};
}

// weights[k * stride] of input pixel span.first + k, k < span.count.
STABLEREP_HOST_DEVICE void weights_of(const Axis& axis, int32_t i, const Span& span, float* weights, int64_t stride) {
    const Taps crop = taps_of(axis.mirrored ? axis.out - 1 - i : i, axis.crop, axis.out);
    for (int32_t k = 0; k < span.count; ++k) weights[k * stride] = 0;
    for (int32_t a = 0; a < crop.count; ++a) {
        const int32_t pixel = axis.offset + crop.first + a;
        if (axis.small == 0) {
            weights[(pixel - span.first) * stride] = float(crop.weight(a));
            continue;
        }
        const Taps up = taps_of(pixel, axis.small, axis.full);
        for (int32_t b = 0; b < up.count; ++b) {
            const Taps down = taps_of(up.first + b, axis.full, axis.small);
            for (int32_t c = 0; c < down.count; ++c) {
                weights[(down.first + c - span.first) * stride] += float(crop.weight(a) * up.weight(b) * down.weight(c));
            }
        }
    }
}

// No span is longer, for any box and either small side, along an axis of at most `full` pixels.
STABLEREP_HOST_DEVICE int32_t most_taps(int32_t full, int32_t other, const AugmentSpec& spec) {
    const double scale = full > spec.image_size ? full / spec.image_size : 1;
    double span = 2 * scale + 2;
    if (spec.downsample > 0) {  // of an upsampled pixel: two small ones, of which each is a triangle of the picture
        const int32_t side = full < other ? full : other;
        const double smaller = spec.small_first < spec.small_second ? spec.small_first : spec.small_second;
        const double shrunk = side > smaller ? side / smaller : 1;
        // A long side is cut to whole pixels: up to half as many, where it has one and a half.
        span += 2 * 2 * (2 * shrunk + 2);
    }
    return span < full ? int32_t(span) : full;
}

// ---- colours, each 0 .. 1 ----

struct Colour {
    float r, g, b;
};

STABLEREP_HOST_DEVICE float grey_of(const Colour& c) { return fused(0.114f, c.b, fused(0.587f, c.g, 0.2989f * c.r)); }

// factor * x + (1 - factor) * other, within 0 .. 1: torchvision's blend.
STABLEREP_HOST_DEVICE float blend(float x, float factor, float rest) { return clamp01(fused(x, factor, rest)); }

// Hue turned by `sixths` of a sixth of the circle, -3 .. 3; saturation and value (of HSV) stay. No branches.
STABLEREP_HOST_DEVICE Colour turn_hue(const Colour& c, float sixths) {
    const float rg_high = c.r > c.g ? c.r : c.g, rg_low = c.r < c.g ? c.r : c.g;
    const float high = rg_high > c.b ? rg_high : c.b, low = rg_low < c.b ? rg_low : c.b;
    const float range = high - low;
    const bool red = c.r == high, green = c.g == high;
    const float across = red ? c.g - c.b : green ? c.b - c.r : c.r - c.g;
    float hue = (red ? 0.0f : green ? 2.0f : 4.0f) + sixths + across / (range > 0.0f ? range : 1.0f);  // -4 .. 8
    hue = hue < 0.0f ? hue + 6.0f : hue;
    hue = hue < 6.0f ? hue : hue - 6.0f;
    const float from_cyan = hue - 3.0f, from_green = hue - 2.0f, from_blue = hue - 4.0f;
    const float r = clamp01((from_cyan < 0.0f ? -from_cyan : from_cyan) - 1.0f);
    const float g = clamp01(2.0f - (from_green < 0.0f ? -from_green : from_green));
    const float b = clamp01(2.0f - (from_blue < 0.0f ? -from_blue : from_blue));
    return {fused(range, r, low), fused(range, g, low), fused(range, b, low)};
}

// ---- blur ----

// 0 .. size - 1, mirrored at the outermost pixels as often as needed.
STABLEREP_HOST_DEVICE int32_t reflected(int32_t i, int32_t size) {
    if (size == 1) return 0;
    const int32_t period = 2 * (size - 1);
    i %= period;
    if (i < 0) i += period;
    return i < size ? i : period - i;
}

STABLEREP_HOST_DEVICE int32_t blur_radius(float sigma) {
    const auto whole = int32_t(3.0 * double(sigma));
    const int32_t radius = whole + (double(whole) < 3.0 * double(sigma));
    return radius < kMostBlurRadius ? radius : kMostBlurRadius;
}

// weights[d], d = 0 .. radius, of the pixels at distance d on either side.
STABLEREP_HOST_DEVICE void blur_weights(float sigma, int32_t radius, float* weights) {
    float total = 0;
    for (int32_t d = radius; d >= 0; --d) {
        weights[d] = expf(-0.5f * float(d) * float(d) / (sigma * sigma));
        total += d > 0 ? 2 * weights[d] : weights[d];
    }
    for (int32_t d = 0; d <= radius; ++d) weights[d] /= total;
}

// ---- rounding to 16 bits, nearest and even; never NaN. Words of 32 bits: halves would not vectorise ----

STABLEREP_HOST_DEVICE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

STABLEREP_HOST_DEVICE uint32_t to_bfloat16(float x) {
    const uint32_t bits = bits_of(x);
    return (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
}

STABLEREP_HOST_DEVICE uint32_t to_float16(float x) {
    const uint32_t bits = bits_of(x), magnitude = bits & 0x7FFFFFFFu;
    const float size = x < 0.0f ? -x : x;
    const uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t tiny = bits_of(size + 0.5f) - 0x3F000000u;  // below 2^-14: steps of 2^-24, rounded by the addition
    const uint32_t half = magnitude < 0x38800000u ? tiny : magnitude < 0x477FF000u ? normal : 0x7C00u;
    return half | ((bits >> 16) & 0x8000u);
}

}  // namespace stablerep

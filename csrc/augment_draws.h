// What is drawn for one picture, from Philox4x32-10 keyed by the seed. Double precision, no fused multiply-add, no
// library function but sqrt and rint: host, device and stablerep/ops/strong_augment/draws.py agree bit for bit.
#pragma once

#include "augment.h"
#include "host_device.h"
#include "philox.h"

namespace stablerep {

// The counter is (2^31 + block, view, image, epoch). philox_normal's first word reaches 2^31 only at the 2^33rd
// element of an image, so no number is drawn twice under one seed.
STABLEREP_HOST_DEVICE Words augment_words(uint64_t seed, const int64_t* key, uint32_t block) {
    return philox4x32_10({0x80000000u + block, uint32_t(key[2]), uint32_t(key[1]), uint32_t(key[0])}, uint32_t(seed),
                         uint32_t(seed >> 32));
}

STABLEREP_HOST_DEVICE double unit_of(uint32_t word) { return double(word >> 8) * (1.0 / 16777216.0); }  // [0, 1)

STABLEREP_HOST_DEVICE double between(uint32_t word, double low, double high) {
    return low + unit_of(word) * (high - low);
}

STABLEREP_HOST_DEVICE int32_t below(uint32_t word, int32_t bound) {
    return int32_t((uint64_t(word) * uint64_t(bound)) >> 32);
}

// exp(x) for |x| < 12 to 1e-13: Taylor at x / 256, then eight squarings.
STABLEREP_HOST_DEVICE double portable_exp(double x) {
    const double z = x * (1.0 / 256.0);
    double y = 1.0;
    for (int i = 9; i >= 1; --i) y = 1.0 + z * y / double(i);
    for (int i = 0; i < 8; ++i) y = y * y;
    return y;
}

struct Box {
    int32_t top, left, height, width;
};

// torchvision's RandomResizedCrop: ten tries of area and ratio, then the largest central crop of an allowed ratio.
STABLEREP_HOST_DEVICE Box draw_box(const AugmentSpec& spec, uint64_t seed, const int64_t* key, int32_t height,
                                   int32_t width) {
    const Words place = augment_words(seed, key, 3);
    Words words{};
    for (int attempt = 0; attempt < 10; ++attempt) {
        if (attempt % 2 == 0) words = augment_words(seed, key, uint32_t(4 + attempt / 2));
        const double area = double(height) * double(width) *
                            between(attempt % 2 ? words.w2 : words.w0, spec.scale_low, spec.scale_high);
        const double ratio =
            portable_exp(between(attempt % 2 ? words.w3 : words.w1, spec.log_ratio_low, spec.log_ratio_high));
        const double w = rint(sqrt(area * ratio)), h = rint(sqrt(area / ratio));
        if (w >= 1 && w <= width && h >= 1 && h <= height) {
            return {below(place.w0, height - int32_t(h) + 1), below(place.w1, width - int32_t(w) + 1), int32_t(h),
                    int32_t(w)};
        }
    }
    const double ratio = double(width) / double(height);
    int32_t h = height, w = width;
    if (ratio < spec.ratio_low) h = int32_t(rint(double(width) / spec.ratio_low));
    if (ratio > spec.ratio_high) w = int32_t(rint(double(height) * spec.ratio_high));
    if (h < 1) h = 1;
    if (w < 1) w = 1;
    return {(height - h) / 2, (width - w) / 2, h, w};
}

// The index-th of the 24 orders of 0 .. 3 in lexicographic order, a byte each.
STABLEREP_HOST_DEVICE int32_t order_of(int32_t index) {
    uint32_t left = 0x03020100u, order = 0;  // what is not yet taken, a byte each
    int32_t orders = 6;                      // that begin alike
    for (int place = 0; place < 4; ++place) {
        const int shift = 8 * (index / orders);
        order |= ((left >> shift) & 0xFFu) << (8 * place);
        const uint32_t kept = (1u << shift) - 1u;
        left = (left & kept) | ((left >> 8) & ~kept);
        index %= orders;
        if (place < 2) orders /= 3 - place;
    }
    return int32_t(order);
}

STABLEREP_HOST_DEVICE float factor_of(uint32_t word, double strength) {  // 1 - strength .. 1 + strength, not below 0
    return float(between(word, strength < 1.0 ? 1.0 - strength : 0.0, 1.0 + strength));
}

STABLEREP_HOST_DEVICE AugmentParams draw_params(const AugmentSpec& spec, uint64_t seed, const int64_t* key,
                                                int32_t height, int32_t width) {
    const Words chance = augment_words(seed, key, 0);
    const Words colour = augment_words(seed, key, 1);
    const Words more = augment_words(seed, key, 2);
    const Box box = draw_box(spec, seed, key, height, width);
    const bool jitter = unit_of(chance.w1) < spec.jitter;
    AugmentParams p{};
    p.top = box.top, p.left = box.left, p.height = box.height, p.width = box.width;
    p.flip = unit_of(chance.w0) < spec.flip;
    p.grey = unit_of(chance.w2) < spec.grey;
    p.order = order_of(below(more.w0, 24));
    p.brightness = jitter ? factor_of(colour.w0, spec.brightness) : 1.0f;
    p.contrast = jitter ? factor_of(colour.w1, spec.contrast) : 1.0f;
    p.saturation = jitter ? factor_of(colour.w2, spec.saturation) : 1.0f;
    p.hue = jitter ? float(between(colour.w3, -spec.hue, spec.hue)) : 0.0f;
    p.sigma = unit_of(chance.w3) < spec.blur ? float(between(more.w1, spec.sigma_low, spec.sigma_high)) : 0.0f;
    if (unit_of(more.w2) < spec.downsample) {
        const auto side = int32_t(below(more.w3, 2) ? spec.small_second : spec.small_first);
        p.small_side = side < (height < width ? height : width) ? side : 0;
    }
    return p;
}

}  // namespace stablerep

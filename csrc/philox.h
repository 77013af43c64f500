// Counter-based normal numbers, the same on host and device: Philox4x32-10 (Salmon et al., SC 2011) and Box-Muller.
//
// Logarithm, sine and cosine are polynomials (Cephes, float) on exactly reduced arguments, not libm calls: host and
// device then share every digit but those that a fused multiply-add moves, and the host compiler can vectorise the loop.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace stablerep {

struct Words {
    uint32_t w0, w1, w2, w3;
};

STABLEREP_HOST_DEVICE Words philox4x32_10(Words counter, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53u} * counter.w0;
        const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter.w2;
        counter = {uint32_t(product1 >> 32) ^ counter.w1 ^ key0, uint32_t(product1),
                   uint32_t(product0 >> 32) ^ counter.w3 ^ key1, uint32_t(product0)};
        key0 += 0x9E3779B9u;  // the golden ratio
        key1 += 0xBB67AE85u;  // sqrt(3) - 1
    }
    return counter;
}

// -2 ln(m / 2^24) for m in 1 .. 2^24, within 1 ulp of the exact value also where m is next to 2^24.
STABLEREP_HOST_DEVICE float minus_2_log_of_24_bits(uint32_t m) {
    const float whole = float(int32_t(m));  // exact
    uint32_t bits;
    memcpy(&bits, &whole, sizeof bits);
    const uint32_t shifted = bits - 0x3F3504F3u;  // the bits of sqrt(1/2): the fraction then lies in sqrt(1/2) .. sqrt(2)
    const float exponent = float(int32_t(shifted) >> 23) - 24.0f;
    bits = (shifted & 0x007FFFFFu) + 0x3F3504F3u;
    float x;
    memcpy(&x, &bits, sizeof x);
    x -= 1.0f;
    const float square = x * x;
    float y = 7.0376836292e-2f;
    y = y * x - 1.1514610310e-1f;
    y = y * x + 1.1676998740e-1f;
    y = y * x - 1.2420140846e-1f;
    y = y * x + 1.4249322787e-1f;
    y = y * x - 1.6668057665e-1f;
    y = y * x + 2.0000714765e-1f;
    y = y * x - 2.4999993993e-1f;
    y = y * x + 3.3333331174e-1f;
    y = y * x * square - 2.12194440e-4f * exponent - 0.5f * square;  // ln 2 = 0.693359375 - 2.12194440e-4
    return -2.0f * (x + y + 0.693359375f * exponent);
}

struct Pair {
    float first, second;
};

// Box-Muller: two uniform words to two independent normal numbers, |value| <= 5.77.
STABLEREP_HOST_DEVICE Pair normal_pair(uint32_t word_radius, uint32_t word_angle) {
    const float radius = sqrtf(minus_2_log_of_24_bits((word_radius >> 8) + 1));
    const uint32_t turn = word_angle >> 8;                   // 2^24 is a whole turn
    const uint32_t quarter = (turn + (1u << 21)) >> 22;      // the nearest quarter of it: 0 .. 4
    const int32_t rest = int32_t(turn - (quarter << 22));    // exact, within an eighth of a turn
    const float a = float(rest) * 3.7450704e-7f;             // 2 pi / 2^24
    const float z = a * a;
    const float sine = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * a + a;
    const float cosine =
        ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
    const bool swap = quarter & 1;
    const float across = swap ? sine : cosine;
    const float up = swap ? cosine : sine;
    return {radius * (((quarter + 1) & 2) ? -across : across), radius * ((quarter & 2) ? -up : up)};
}

// Block b of an image's noise: its flat elements 4b .. 4b+3.
struct Normals {
    float n0, n1, n2, n3;
};

STABLEREP_HOST_DEVICE Normals normal_block(uint64_t seed, uint64_t prompt_id, uint32_t index, uint32_t block) {
    const Words words = philox4x32_10({block, index, uint32_t(prompt_id), uint32_t(prompt_id >> 32)}, uint32_t(seed),
                                      uint32_t(seed >> 32));
    const Pair low = normal_pair(words.w0, words.w1);
    const Pair high = normal_pair(words.w2, words.w3);
    return {low.first, low.second, high.first, high.second};
}

}  // namespace stablerep

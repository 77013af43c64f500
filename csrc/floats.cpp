#include "floats.h"

#include <cstring>

#include "vector_clones.h"

namespace stablerep {
namespace {

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

STABLEREP_VECTOR_CLONES
void bfloat16_to_float(const uint16_t* __restrict in, int64_t n, float* __restrict out) {
    for (int64_t i = 0; i < n; ++i) out[i] = from_bits(uint32_t{in[i]} << 16);
}

STABLEREP_VECTOR_CLONES
void float_to_bfloat16(const float* __restrict in, int64_t n, uint16_t* __restrict out) {
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = to_bits(in[i]);
        const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
        out[i] = uint16_t((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
    }
}

STABLEREP_VECTOR_CLONES
void float16_to_float(const uint16_t* __restrict in, int64_t n, float* __restrict out) {
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t sign = uint32_t{in[i] & 0x8000u} << 16;
        const uint32_t rest = uint32_t{in[i] & 0x7FFFu} << 13;
        const uint32_t subnormal = to_bits(from_bits(rest >> 13 | 0x3F000000u) - 0.5f);  // multiples of 2^-24
        const uint32_t normal = rest + (rest >= 0x0F800000u ? 0x70000000u : 0x38000000u);  // infinity and NaN stay so
        out[i] = from_bits(sign | (rest < 0x00800000u ? subnormal : normal));
    }
}

STABLEREP_VECTOR_CLONES
void float_to_float16(const float* __restrict in, int64_t n, uint16_t* __restrict out) {
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = to_bits(in[i]);
        const uint32_t sign = bits >> 16 & 0x8000u;
        const uint32_t magnitude = bits & 0x7FFFFFFFu;
        // Below 2^-14 an addition of 1/2 rounds to multiples of 2^-24; above, as for bfloat16.
        const uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3F000000u;
        const uint32_t normal = (magnitude - 0x38000000u + 0x0FFFu + (magnitude >> 13 & 1u)) >> 13;
        const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
        const uint32_t large = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;            // NaN or infinity
        out[i] = uint16_t(sign | (magnitude >= 0x477FF000u ? large : finite));  // from 65520 on: infinity
    }
}

}  // namespace

const float* as_floats(Dtype dtype, const void* data, int64_t first, int64_t n, float* buffer) {
    if (dtype == Dtype::float32) return static_cast<const float*>(data) + first;
    const uint16_t* const halves = static_cast<const uint16_t*>(data) + first;
    (dtype == Dtype::bfloat16 ? bfloat16_to_float : float16_to_float)(halves, n, buffer);
    return buffer;
}

void store_floats(Dtype dtype, const float* floats, int64_t first, int64_t n, void* data) {
    if (dtype == Dtype::float32) {
        std::memcpy(static_cast<float*>(data) + first, floats, sizeof(float) * n);
        return;
    }
    uint16_t* const halves = static_cast<uint16_t*>(data) + first;
    (dtype == Dtype::bfloat16 ? float_to_bfloat16 : float_to_float16)(floats, n, halves);
}

}  // namespace stablerep

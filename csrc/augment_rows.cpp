#include "augment_rows.h"

#include "augment_pixel.h"
#include "vector_clones.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#include <immintrin.h>
#define STABLEREP_AVX512 1
#endif

namespace stablerep::rows {
namespace {

STABLEREP_VECTOR_CLONES void mix_1(const uint8_t* a, float wa, int n, float* out) {
#pragma omp simd
    for (int i = 0; i < n; ++i) out[i] = wa * float(a[i]);
}

STABLEREP_VECTOR_CLONES void mix_2(const uint8_t* a, const uint8_t* b, float wa, float wb, int n, float* out) {
#pragma omp simd
    for (int i = 0; i < n; ++i) out[i] = wa * float(a[i]) + wb * float(b[i]);
}

STABLEREP_VECTOR_CLONES void add_2(const uint8_t* a, const uint8_t* b, float wa, float wb, int n, float* out) {
#pragma omp simd
    for (int i = 0; i < n; ++i) out[i] += wa * float(a[i]) + wb * float(b[i]);
}

STABLEREP_VECTOR_CLONES void gather(const float* in, const Columns& columns, float* out) {
    const int32_t* const first = columns.first;
    const int stride = columns.stride & -kLane;
    for (int k = 0; k < columns.taps; ++k) {
        const float* const weights = columns.weights + int64_t{k} * stride;
        const float* const from = in + k;
        if (k == 0) {
#pragma omp simd
            for (int x = 0; x < stride; ++x) out[x] = weights[x] * from[first[x]];
        } else {
#pragma omp simd
            for (int x = 0; x < stride; ++x) out[x] += weights[x] * from[first[x]];
        }
    }
}

#ifdef STABLEREP_AVX512
// The inputs of 16 outputs in two registers, picked by a permutation. The processor's gather takes 0.12 ms more of
// 0.22 ms a picture (256 to 224, one core of a Sapphire Rapids).
__attribute__((target("arch=x86-64-v4"))) void permute(const float* in, const Columns& columns, float* out) {
    for (int x = 0; x < columns.stride; x += kLane) {
        const int32_t base = columns.base[x / kLane];
        const __m512 low = _mm512_loadu_ps(in + base), high = _mm512_loadu_ps(in + base + kLane);
        __m512i index = _mm512_sub_epi32(_mm512_loadu_si512(columns.first + x), _mm512_set1_epi32(base));
        __m512 sum = _mm512_setzero_ps();
        for (int k = 0; k < columns.taps; ++k) {
            const __m512 weight = _mm512_loadu_ps(columns.weights + int64_t{k} * columns.stride + x);
            sum = _mm512_fmadd_ps(weight, _mm512_permutex2var_ps(low, index, high), sum);
            index = _mm512_add_epi32(index, _mm512_set1_epi32(1));
        }
        _mm512_storeu_ps(out + x, sum);
    }
}

const bool kPermutes = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#endif

// 16 floats, however many registers that takes.
typedef float Vector __attribute__((vector_size(kLane * sizeof(float))));

inline __attribute__((always_inline)) Vector load(const float* from) {
    Vector vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

// Sums of kVectors side by side, kept in registers: weights[0] * middle + weights[d] * (before(d) + after(d)).
template <int kVectors, typename At>
inline __attribute__((always_inline)) void blur_vectors(At at, const float* weights, int radius, float* out) {
    Vector sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = weights[0] * load(at(0) + v * kLane);
    for (int d = 1; d <= radius; ++d) {
        const float *const before = at(-d), *const after = at(d);
        for (int v = 0; v < kVectors; ++v) sum[v] += weights[d] * (load(before + v * kLane) + load(after + v * kLane));
    }
    __builtin_memcpy(out, sum, sizeof sum);
}

// Channels in planes, or side by side.
template <typename T, typename Convert>
inline __attribute__((always_inline)) void convert(const float* row, int stride, int size, const float* factor,
                                                   const float* offset, int64_t plane, Convert to, T* out) {
    if (plane > 0) {
        for (int c = 0; c < 3; ++c, row += stride, out += plane) {
            const float a = factor[c], b = offset[c];
#pragma omp simd
            for (int x = 0; x < size; ++x) out[x] = T(to(fused(row[x], a, b)));
        }
    } else {
        const float *const r = row, *const g = row + stride, *const b = row + 2 * stride;
        const float a0 = factor[0], a1 = factor[1], a2 = factor[2], b0 = offset[0], b1 = offset[1], b2 = offset[2];
#pragma omp simd
        for (int x = 0; x < size; ++x) {
            out[3 * x] = T(to(fused(r[x], a0, b0)));
            out[3 * x + 1] = T(to(fused(g[x], a1, b1)));
            out[3 * x + 2] = T(to(fused(b[x], a2, b2)));
        }
    }
}

STABLEREP_VECTOR_CLONES
void convert_float32(const float* row, int stride, int size, const float* factor, const float* offset,
                                      int64_t plane, float* out) {
    convert(row, stride, size, factor, offset, plane, [](float x) { return x; }, out);
}
STABLEREP_VECTOR_CLONES
void convert_bfloat16(const float* row, int stride, int size, const float* factor, const float* offset,
                                       int64_t plane, uint16_t* out) {
    convert(row, stride, size, factor, offset, plane, [](float x) { return to_bfloat16(x); }, out);
}
STABLEREP_VECTOR_CLONES
void convert_float16(const float* row, int stride, int size, const float* factor, const float* offset,
                                      int64_t plane, uint16_t* out) {
    convert(row, stride, size, factor, offset, plane, [](float x) { return to_float16(x); }, out);
}

}  // namespace

void mix(const uint8_t* bytes, int64_t pitch, const float* weights, int count, int n, float* out) {
    if (count == 1) return mix_1(bytes, weights[0], n, out);
    mix_2(bytes, bytes + pitch, weights[0], weights[1], n, out);
    for (int k = 2; k < count; k += 2) {
        const bool pair = k + 1 < count;
        add_2(bytes + k * pitch, bytes + (pair ? k + 1 : k) * pitch, weights[k], pair ? weights[k + 1] : 0.0f, n, out);
    }
}

STABLEREP_VECTOR_CLONES void split(const float* in, int n, float* r, float* g, float* b) {
#pragma omp simd
    for (int i = 0; i < n; ++i) {
        r[i] = in[3 * i];
        g[i] = in[3 * i + 1];
        b[i] = in[3 * i + 2];
    }
}

void resample(const float* const in[3], const Columns& columns, float* row) {
    for (int c = 0; c < 3; ++c) {
#ifdef STABLEREP_AVX512
        if (columns.base != nullptr && kPermutes) {
            permute(in[c], columns, row + c * columns.stride);
            continue;
        }
#endif
        gather(in[c], columns, row + c * columns.stride);
    }
}

STABLEREP_VECTOR_CLONES void brighten(float* row, int stride, float factor) {
    const int n = 3 * (stride & -kLane);
#pragma omp simd
    for (int i = 0; i < n; ++i) row[i] = clamp01(factor * row[i]);
}

STABLEREP_VECTOR_CLONES void add_contrast(float* row, int stride, float factor, float mean) {
    const int n = 3 * (stride & -kLane);
    const float rest = (1.0f - factor) * mean;
#pragma omp simd
    for (int i = 0; i < n; ++i) row[i] = blend(row[i], factor, rest);
}

STABLEREP_VECTOR_CLONES void saturate(float* row, int stride, float factor) {
    float *const r = row, *const g = row + stride, *const b = row + 2 * stride;
    const int n = stride & -kLane;
#pragma omp simd
    for (int x = 0; x < n; ++x) {
        const float rest = (1.0f - factor) * grey_of({r[x], g[x], b[x]});
        r[x] = blend(r[x], factor, rest);
        g[x] = blend(g[x], factor, rest);
        b[x] = blend(b[x], factor, rest);
    }
}

STABLEREP_VECTOR_CLONES void turn_hue(float* row, int stride, float turns) {
    float *const r = row, *const g = row + stride, *const b = row + 2 * stride;
    const int n = stride & -kLane;
    const float sixths = 6.0f * turns;
#pragma omp simd
    for (int x = 0; x < n; ++x) {
        const Colour turned = stablerep::turn_hue({r[x], g[x], b[x]}, sixths);
        r[x] = turned.r;
        g[x] = turned.g;
        b[x] = turned.b;
    }
}

STABLEREP_VECTOR_CLONES void make_grey(float* row, int stride) {
    float *const r = row, *const g = row + stride, *const b = row + 2 * stride;
    const int n = stride & -kLane;
#pragma omp simd
    for (int x = 0; x < n; ++x) r[x] = g[x] = b[x] = grey_of({r[x], g[x], b[x]});
}

STABLEREP_VECTOR_CLONES double sum_of_grey(const float* row, int stride) {
    const float *const r = row, *const g = row + stride, *const b = row + 2 * stride;
    const int n = stride & -kLane;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int x = 0; x < n; ++x) sum += grey_of({r[x], g[x], b[x]});
    return sum;
}

STABLEREP_VECTOR_CLONES void blur_across(const float* row, int stride, int size, const float* weights, int radius,
                                  float* padded, float* out) {
    const int n = stride & -kLane;
    for (int c = 0; c < 3; ++c, row += stride, out += stride) {
        float* const middle = padded + radius;
#pragma omp simd
        for (int x = 0; x < n; ++x) middle[x] = row[x];
        for (int d = 1; d <= radius; ++d) {
            middle[-d] = row[reflected(-d, size)];
            middle[size - 1 + d] = row[reflected(size - 1 + d, size)];
        }
        for (int x = 0; x < n;) {
            const auto at = [&](int d) { return middle + x + d; };
            if (n - x >= 4 * kLane) {
                blur_vectors<4>(at, weights, radius, out + x);
                x += 4 * kLane;
            } else {
                blur_vectors<1>(at, weights, radius, out + x);
                x += kLane;
            }
        }
    }
}

STABLEREP_VECTOR_CLONES
void blur_down(const float* const* in, int stride, const float* weights, int radius, float* out) {
    const int n = 3 * (stride & -kLane);
    for (int x = 0; x < n;) {
        const auto at = [&](int d) { return in[radius + d] + x; };
        if (n - x >= 4 * kLane) {
            blur_vectors<4>(at, weights, radius, out + x);
            x += 4 * kLane;
        } else {
            blur_vectors<1>(at, weights, radius, out + x);
            x += kLane;
        }
    }
}

void store(const float* row, int stride, int size, const float factor[3], const float offset[3], AugmentOutput type,
           int64_t plane, void* out) {
    if (type == AugmentOutput::kFloat32) {
        convert_float32(row, stride, size, factor, offset, plane, static_cast<float*>(out));
    } else if (type == AugmentOutput::kBfloat16) {
        convert_bfloat16(row, stride, size, factor, offset, plane, static_cast<uint16_t*>(out));
    } else {
        convert_float16(row, stride, size, factor, offset, plane, static_cast<uint16_t*>(out));
    }
}

}  // namespace stablerep::rows

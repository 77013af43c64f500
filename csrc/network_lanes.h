// The steps of a network for one vector width. Included once for each by network_v4.cpp (16 floats), network_v3.cpp (8)
// and network_any.cpp (4), which define STABLEREP_LANES and are compiled for that processor: nothing in here may be a
// function of the standard library, whose copy for the widest processor the linker could hand to all.
#include <cstdint>

#if STABLEREP_LANES == 16
#include <immintrin.h>
#endif

#include "network_step.h"

namespace stablerep::STABLEREP_LANES_NAMESPACE {
namespace {

constexpr int kLanes = STABLEREP_LANES;
constexpr int kVectors = STABLEREP_VECTORS;  // columns of a block of the product, in vectors
constexpr int kRows = STABLEREP_ROWS;        // and its rows: kRows * kVectors sums stay in registers
constexpr int kSums = 4;                     // of a channel side by side, so that none waits for the one before
constexpr int kLine = 16;                    // floats of a cache line
constexpr int kSide = 6, kPositions = kSide * kSide;  // Winograd F(4x4, 3x3): 6 x 6 inputs, 4 x 4 outputs

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef int32_t Integers __attribute__((vector_size(kLanes * 4)));
typedef float Unaligned __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

#define STABLEREP_INLINE inline __attribute__((always_inline))

STABLEREP_INLINE Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
STABLEREP_INLINE void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }
STABLEREP_INLINE Vector all(float value) { return value - Vector{}; }
STABLEREP_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

STABLEREP_INLINE float sum_of(Vector values) {
    float sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += values[lane];
    return sum;
}

// Within 3e-7 of its value. Beyond -80 and 80 it stays where it is; NaN stays NaN.
STABLEREP_INLINE Vector exponential(Vector x) {
    x = x < -80.0f ? all(-80.0f) : x;
    x = x > 80.0f ? all(80.0f) : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding and taking it away rounds to a whole number
    const Vector n = (x * 1.44269504f + magic) - magic;
    const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vector p = all(1 / 5040.0f);
    p = p * r + 1 / 720.0f;
    p = p * r + 1 / 120.0f;
    p = p * r + 1 / 24.0f;
    p = p * r + 1 / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    return p * reinterpret_cast<Vector>(power);
}

// Within two roundings. A division of 16 floats takes as long as all the rest of silu.
STABLEREP_INLINE Vector reciprocal(Vector x) {
#if STABLEREP_LANES == 16
    const Vector first = _mm512_rcp14_ps(x);
    return first * (2.0f - x * first);
#else
    return 1.0f / x;
#endif
}

STABLEREP_INLINE Vector silu(Vector x) { return x * reciprocal(1.0f + exponential(-x)); }

// x times the normal distribution's integral up to x; the integral by Abramowitz and Stegun 7.1.26, within 1e-7.
STABLEREP_INLINE Vector gelu(Vector x) {
    const Vector z = (x < 0.0f ? -x : x) * 0.707106781f;
    const Vector t = reciprocal(1.0f + 0.3275911f * z);
    Vector p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Vector tail = 0.5f * p * t * exponential(-z * z);
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

// c[m, n] = a[m, k] b[k, n] + bias[n] + residual[m, n]. Every sum runs over k in order, wherever its row lies.
struct Product {
    const float* a;
    int64_t a_stride;
    const float* b;
    int64_t b_stride;  // 0: b lies in panels
    float* c;
    int64_t c_stride;
    int64_t m, k, n;
    const float* bias = nullptr;
    const float* residual = nullptr;
    int64_t residual_stride = 0;
};

template <int rows, int vectors>
STABLEREP_INLINE void block(const Product& call, int64_t row, int64_t column, const float* b, int64_t b_stride,
                            const float* ahead) {
    Vector sum[rows][vectors] = {};
    const float* const a = call.a + row * call.a_stride;
    const int64_t a_stride = call.a_stride, k = call.k;
    for (int64_t i = 0; i < k; ++i) {
        __builtin_prefetch(ahead + i * kLine, 0, 2);
        Vector across[vectors];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) across[v] = load(b + i * b_stride + v * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
            const Vector down = all(a[r * a_stride + i]);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) sum[r][v] += down * across[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            const int64_t at = column + v * kLanes;
            Vector value = sum[r][v];
            if (call.bias) value += load(call.bias + at);
            if (call.residual) value += load(call.residual + (row + r) * call.residual_stride + at);
            store(call.c + (row + r) * call.c_stride + at, value);
        }
    }
}

// Asks for the next panel while this one is at work: weights are the one thing that no cache holds. An eighth of a UNet
// step of the embedded default, 124 ms without, 109 with, one core of a Sapphire Rapids.
template <int vectors>
void columns(const Product& call, int64_t column, const float* b, int64_t b_stride, const float* ahead) {
    int64_t row = 0;
    for (; row + kRows <= call.m; row += kRows) {
        block<kRows, vectors>(call, row, column, b, b_stride, ahead);
        if (row < 3 * kRows) ahead += call.k * kLine;  // a panel has three lines a row, and is asked for once
    }
    if (kRows > 4 && row + 4 <= call.m) {
        block<4, vectors>(call, row, column, b, b_stride, ahead);
        row += 4;
    }
    for (; row + 2 <= call.m; row += 2) block<2, vectors>(call, row, column, b, b_stride, ahead);
    if (row < call.m) block<1, vectors>(call, row, column, b, b_stride, ahead);
}

void multiply(const Product& call) {
    for (int64_t panel = 0; panel < call.n; panel += kPanel) {
        const int64_t width = least(kPanel, call.n - panel);
        const float* const b = call.b + (call.b_stride ? panel : panel * call.k);
        const int64_t b_stride = call.b_stride ? call.b_stride : width;
        const float* const ahead = b + call.k * b_stride;
        int64_t at = 0;
        for (; at + kVectors * kLanes <= width; at += kVectors * kLanes) {
            columns<kVectors>(call, panel + at, b + at, b_stride, ahead);
        }
        if constexpr (kVectors > 2) {
            if (at + 2 * kLanes <= width) {
                columns<2>(call, panel + at, b + at, b_stride, ahead);
                at += 2 * kLanes;
            }
        }
        for (; at < width; at += kLanes) columns<1>(call, panel + at, b + at, b_stride, ahead);
    }
}

// The scale and shift that group normalisation is for one picture, a number a channel each.
void group_affine(const NetworkStep& step, const float* x, int64_t stride, int64_t pixels, float* scale, float* shift) {
    const int64_t channels = step.in_channels;
    for (int64_t c = 0; c < channels; c += kLanes) {  // mean and sum of squares about it, of each channel
        Vector sums[kSums] = {}, squares[kSums] = {};
        for (int64_t p = 0; p < pixels; p += kSums) {
            for (int i = 0; i < kSums && p + i < pixels; ++i) sums[i] += load(x + (p + i) * stride + c);
        }
        const Vector mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / float(pixels);
        for (int64_t p = 0; p < pixels; p += kSums) {
            for (int i = 0; i < kSums && p + i < pixels; ++i) {
                const Vector apart = load(x + (p + i) * stride + c) - mean;
                squares[i] += apart * apart;
            }
        }
        store(scale + c, mean);
        store(shift + c, (squares[0] + squares[1]) + (squares[2] + squares[3]));
    }
    const int64_t each = channels / step.groups;
    for (int64_t first = 0; first < channels; first += each) {
        double mean = 0, square = 0;
        for (int64_t c = first; c < first + each; ++c) mean += scale[c];
        mean /= double(each);
        for (int64_t c = first; c < first + each; ++c) {
            const double apart = scale[c] - mean;
            square += shift[c] + double(pixels) * apart * apart;
        }
        const double factor = 1 / __builtin_sqrt(square / double(each * pixels) + double(step.eps));
        for (int64_t c = first; c < first + each; ++c) {
            scale[c] = float(factor * step.norm_weight[c]);
            shift[c] = float(step.norm_bias[c] - mean * factor * step.norm_weight[c]);
        }
    }
}

void copy(const NetworkStep& step, const StepRows& rows) {
    for (int64_t p = 0; p < rows.rows * rows.pixels; ++p) {
        for (int64_t c = 0; c < step.in_channels; c += kLanes) {
            store(rows.out + p * rows.out_stride + c, load(rows.in + p * rows.in_stride + c));
        }
    }
}

void matmul(const NetworkStep& step, const StepRows& rows) {
    multiply({rows.in, rows.in_stride, step.weights, 0, rows.out, rows.out_stride, rows.rows * rows.pixels,
              step.in_channels, step.out_channels, rows.bias, rows.residual, rows.residual_stride});
}

// Straight times gelu(gate), panel by panel, so that the two halves of the wide product never leave the cache.
void geglu(const NetworkStep& step, const StepRows& rows) {
    const int64_t tokens = rows.rows * rows.pixels, wide = step.out_channels, k = step.in_channels;
    float* const straight = rows.scratch;
    float* const gate = straight + kTokens * kPanel;
    for (int64_t panel = 0; panel < wide; panel += kPanel) {
        const int64_t width = least(kPanel, wide - panel);
        for (int64_t first = 0; first < tokens; first += kTokens) {
            const int64_t m = least(kTokens, tokens - first);
            const float* const a = rows.in + first * rows.in_stride;
            const float* const b = step.weights + panel * k;
            multiply({a, rows.in_stride, b, 0, straight, kPanel, m, k, width, rows.bias + panel});
            multiply({a, rows.in_stride, b + wide * k, 0, gate, kPanel, m, k, width, rows.bias + wide + panel});
            for (int64_t t = 0; t < m; ++t) {
                for (int64_t c = 0; c < width; c += kLanes) {
                    store(rows.out + (first + t) * rows.out_stride + panel + c,
                          load(straight + t * kPanel + c) * gelu(load(gate + t * kPanel + c)));
                }
            }
        }
    }
}

void layer_norm(const NetworkStep& step, const StepRows& rows) {
    const int64_t channels = step.in_channels;
    for (int64_t t = 0; t < rows.rows * rows.pixels; ++t) {
        const float* const x = rows.in + t * rows.in_stride;
        Vector sum{}, square{};
        for (int64_t c = 0; c < channels; c += kLanes) sum += load(x + c);
        const float mean = sum_of(sum) / float(channels);
        for (int64_t c = 0; c < channels; c += kLanes) {
            const Vector apart = load(x + c) - mean;
            square += apart * apart;
        }
        const float factor = 1 / __builtin_sqrtf(sum_of(square) / float(channels) + step.eps);
        for (int64_t c = 0; c < channels; c += kLanes) {
            const Vector normal = (load(x + c) - mean) * factor;
            store(rows.out + t * rows.out_stride + c, normal * load(step.norm_weight + c) + load(step.norm_bias + c));
        }
    }
}

template <bool with_silu>
void scale_map(const float* x, int64_t x_stride, int64_t pixels, int64_t channels, const float* scale,
               const float* shift, float* out, int64_t out_stride) {
    for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t c = 0; c < channels; c += kLanes) {
            const Vector y = load(x + p * x_stride + c) * load(scale + c) + load(shift + c);
            store(out + p * out_stride + c, with_silu ? silu(y) : y);
        }
    }
}

void group_norm(const NetworkStep& step, const StepRows& rows) {
    float* const scale = rows.scratch;
    float* const shift = scale + step.in_channels;
    for (int64_t row = 0; row < rows.rows; ++row) {
        const float* const x = rows.in + row * rows.pixels * rows.in_stride;
        float* const out = rows.out + row * rows.pixels * rows.out_stride;
        group_affine(step, x, rows.in_stride, rows.pixels, scale, shift);
        (step.silu ? scale_map<true> : scale_map<false>)(x, rows.in_stride, rows.pixels, step.in_channels, scale, shift,
                                                         out, rows.out_stride);
    }
}

#include "network_attention.h"
#include "network_conv.h"

}  // namespace

void run_step(const NetworkStep& step, const StepRows& rows) {
    switch (step.kind) {
        case StepKind::copy: return copy(step, rows);
        case StepKind::matmul: return matmul(step, rows);
        case StepKind::geglu: return geglu(step, rows);
        case StepKind::layer_norm: return layer_norm(step, rows);
        case StepKind::group_norm: return group_norm(step, rows);
        case StepKind::conv3x3: return conv3x3(step, rows);
        case StepKind::conv3x3_stride2: return conv3x3_stride2(step, rows);
        case StepKind::attention: return attention(step, rows);
    }
}

}  // namespace stablerep::STABLEREP_LANES_NAMESPACE

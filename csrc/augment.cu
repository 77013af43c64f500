// Strong augmentation on a GPU, a batch in parts that fit the scratch, in three launches each: plan writes every
// row of weights, resize makes floating-point pictures and their sums of grey, finish does what needs the whole picture
// (contrast, then the rest of the colours, blur) and writes the output. Arithmetic: augment_pixel.h, tested on the host.
#include <cuda_runtime.h>

#include <algorithm>

#include "augment.h"
#include "augment_draws.h"
#include "augment_pixel.h"
#include "cuda_device.h"

namespace stablerep {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;                         // a block makes kTile x kTile pixels, a warp a row of them
constexpr int kRows = kThreads / kTile;           // at a time
constexpr int kPixels = kTile / kRows;            // pixels of a thread: one column, every kRows-th row
constexpr int kInputRows = 48;                    // in shared memory at a time; a tile needs 39 at 256 to 224
constexpr int kRegisterTaps = 4;                  // weights of a column in registers; more are read again

// Scratch of one part of the batch; pictures of a part are counted from 0.
struct Scratch {
    Span* spans;     // [part][2][S], columns then rows
    float* weights;  // [part][taps_x + taps_y][S]
    float* pixels;   // [part][3][S][S]
    float* sums;     // [part][tiles] of grey
    int32_t taps_x, taps_y;
};

struct Work {
    Pictures pictures;
    const AugmentParams* params;  // of the whole batch, as is out
    void* out;
    AugmentOutput type;
    bool channels_last;
    int32_t size, tiles_across, most_radius;
    float factor[3], offset[3];
    Scratch scratch;
    int64_t first;  // picture of the batch that is picture 0 of the part
};

__device__ int operation_of(const AugmentParams& p, int i) { return (p.order >> (8 * i)) & 0xFF; }

__device__ int operations_before_contrast(const AugmentParams& p) {
    int before = 0;
    while (before < 4 && !(operation_of(p, before) == 1 && p.contrast != 1.0f)) ++before;
    return before;
}

__device__ Colour changed(Colour c, const AugmentParams& p, int operation, float mean) {
    if (operation == 0 && p.brightness != 1.0f) {
        c = {clamp01(p.brightness * c.r), clamp01(p.brightness * c.g), clamp01(p.brightness * c.b)};
    } else if (operation == 1 && p.contrast != 1.0f) {
        const float rest = (1.0f - p.contrast) * mean;
        c = {blend(c.r, p.contrast, rest), blend(c.g, p.contrast, rest), blend(c.b, p.contrast, rest)};
    } else if (operation == 2 && p.saturation != 1.0f) {
        const float rest = (1.0f - p.saturation) * grey_of(c);
        c = {blend(c.r, p.saturation, rest), blend(c.g, p.saturation, rest), blend(c.b, p.saturation, rest)};
    } else if (operation == 3 && p.hue != 0.0f) {
        c = turn_hue(c, 6.0f * p.hue);
    }
    return c;
}

__device__ Colour finished(const Work& work, const AugmentParams& p, int before, float mean, const float* pixels,
                           int32_t y, int32_t x) {
    const int64_t plane = int64_t{work.size} * work.size, at = int64_t{y} * work.size + x;
    Colour c{pixels[at], pixels[plane + at], pixels[2 * plane + at]};
    for (int i = before; i < 4; ++i) c = changed(c, p, operation_of(p, i), mean);
    if (p.grey != 0) c.r = c.g = c.b = grey_of(c);
    return c;
}

__device__ void store(const Work& work, int64_t picture, int32_t y, int32_t x, const Colour& c) {
    const int64_t plane = int64_t{work.size} * work.size, at = int64_t{y} * work.size + x;
    const int64_t first = picture * 3 * plane + (work.channels_last ? 3 * at : at);
    const int64_t step = work.channels_last ? 1 : plane;
    const float values[3] = {fused(c.r, work.factor[0], work.offset[0]), fused(c.g, work.factor[1], work.offset[1]),
                             fused(c.b, work.factor[2], work.offset[2])};
    for (int channel = 0; channel < 3; ++channel) {
        const float value = values[channel];
        if (work.type == AugmentOutput::kFloat32) {
            static_cast<float*>(work.out)[first + channel * step] = value;
        } else {
            static_cast<uint16_t*>(work.out)[first + channel * step] =
                uint16_t(work.type == AugmentOutput::kBfloat16 ? to_bfloat16(value) : to_float16(value));
        }
    }
}

// The sum over the block, the same on every thread and in every run. shared: [kThreads / 32].
__device__ float block_sum(float value, float* shared) {
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    __syncthreads();  // shared may still be read from before
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += shared[warp];
    return sum;
}

__global__ void __launch_bounds__(kThreads)
    draw_kernel(Pictures pictures, AugmentSpec spec, uint64_t seed, const int64_t* keys, AugmentParams* params) {
    const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
    if (i >= pictures.number) return;
    const Picture picture = picture_of(pictures, i);
    params[i] = draw_params(spec, seed, keys + 3 * i, picture.height, picture.width);
}

// x runs over the columns, then the rows of a picture; y over pictures.
__global__ void __launch_bounds__(kThreads) plan_kernel(Work work) {
    const int32_t i = int32_t(blockIdx.x) * kThreads + int32_t(threadIdx.x);
    if (i >= 2 * work.size) return;
    const bool vertical = i >= work.size;
    const int32_t at = vertical ? i - work.size : i;
    const int64_t part = blockIdx.y, picture = work.first + part;
    const Scratch& scratch = work.scratch;
    const Axis axis = axis_of(work.params[picture], picture_of(work.pictures, picture), work.size, vertical);
    Span span = span_of(axis, at);
    const int32_t most = vertical ? scratch.taps_y : scratch.taps_x;
    if (span.count > most) span.count = most;  // never so; the memory is not there
    scratch.spans[(2 * part + vertical) * work.size + at] = span;
    const int64_t row = part * (scratch.taps_x + scratch.taps_y) + (vertical ? scratch.taps_x : 0);
    weights_of(axis, at, span, scratch.weights + row * work.size + at, work.size);
}

// x runs over tiles, y over pictures.
__global__ void __launch_bounds__(kThreads) resize_kernel(Work work) {
    __shared__ float across[kInputRows][3][kTile];
    __shared__ float partial[kThreads / 32];
    const int32_t size = work.size, lane = int32_t(threadIdx.x) % kTile, warp = int32_t(threadIdx.x) / kTile;
    const int32_t x = int32_t(blockIdx.x) % work.tiles_across * kTile + lane;
    const int32_t top = int32_t(blockIdx.x) / work.tiles_across * kTile;
    const int64_t part = blockIdx.y;
    const Scratch& scratch = work.scratch;
    const Picture picture = picture_of(work.pictures, work.first + part);
    const Span* const rows = scratch.spans + (2 * part + 1) * size;
    const float* const columns_weights = scratch.weights + part * (scratch.taps_x + scratch.taps_y) * size + x;
    const float* const rows_weights = scratch.weights + (part * (scratch.taps_x + scratch.taps_y) + scratch.taps_x) * size;

    const Span column = x < size ? scratch.spans[2 * part * size + x] : Span{0, 0};
    float weights[kRegisterTaps];
    for (int k = 0; k < kRegisterTaps; ++k) {
        weights[k] = k < column.count ? columns_weights[int64_t{k} * size] : 0.0f;
    }
    const Span last = rows[min(top + kTile, size) - 1];
    const int32_t end = last.first + last.count;
    float sum[kPixels][3] = {};
    for (int32_t begin = rows[top].first; begin < end; begin += kInputRows) {
        const int32_t count = min(end - begin, kInputRows);
        __syncthreads();  // the rows before are still read
        for (int32_t row = warp; row < count; row += kRows) {
            const uint8_t* pixel = picture.pixels + (int64_t{begin + row} * picture.width + column.first) * 3;
            float r = 0, g = 0, b = 0;
#pragma unroll
            for (int k = 0; k < kRegisterTaps; ++k) {
                if (k < column.count) {
                    r = fused(weights[k], float(pixel[3 * k]), r);
                    g = fused(weights[k], float(pixel[3 * k + 1]), g);
                    b = fused(weights[k], float(pixel[3 * k + 2]), b);
                }
            }
            for (int32_t k = kRegisterTaps; k < column.count; ++k) {
                const float weight = columns_weights[int64_t{k} * size];
                r = fused(weight, float(pixel[3 * k]), r);
                g = fused(weight, float(pixel[3 * k + 1]), g);
                b = fused(weight, float(pixel[3 * k + 2]), b);
            }
            across[row][0][lane] = r;
            across[row][1][lane] = g;
            across[row][2][lane] = b;
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < kPixels; ++j) {
            const int32_t y = top + warp + j * kRows;
            if (y >= size) continue;
            const Span span = rows[y];
            const int32_t from = max(0, begin - span.first), to = min(span.count, begin + count - span.first);
            for (int32_t k = from; k < to; ++k) {
                const float weight = rows_weights[int64_t{k} * size + y];
                const int32_t row = span.first + k - begin;
                for (int c = 0; c < 3; ++c) sum[j][c] = fused(weight, across[row][c][lane], sum[j][c]);
            }
        }
    }

    const AugmentParams p = work.params[work.first + part];  // not before: these registers were all in use
    const int before = operations_before_contrast(p);
    float* const pixels = scratch.pixels + part * 3 * size * size;
    float grey = 0;
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
        const int32_t y = top + warp + j * kRows;
        if (x >= size || y >= size) continue;
        Colour c{sum[j][0] * (1.0f / 255.0f), sum[j][1] * (1.0f / 255.0f), sum[j][2] * (1.0f / 255.0f)};
        for (int i = 0; i < before; ++i) c = changed(c, p, operation_of(p, i), 0.0f);
        grey += grey_of(c);
        const int64_t plane = int64_t{size} * size, at = int64_t{y} * size + x;
        pixels[at] = c.r;
        pixels[plane + at] = c.g;
        pixels[2 * plane + at] = c.b;
    }
    grey = block_sum(grey, partial);
    if (threadIdx.x == 0) scratch.sums[part * gridDim.x + blockIdx.x] = grey;
}

int64_t finish_shared_floats(int32_t radius) {
    const int64_t edge = kTile + 2 * radius;
    return 3 * edge * edge + 3 * edge * kTile;
}

// x runs over tiles, y over pictures. Dynamic shared memory: finish_shared_floats(most_radius), 0 where nothing is blurred.
__global__ void __launch_bounds__(kThreads) finish_kernel(Work work) {
    extern __shared__ float shared[];
    __shared__ float partial[kThreads / 32];
    __shared__ float weights[kMostBlurRadius + 1];
    const int32_t size = work.size, lane = int32_t(threadIdx.x) % kTile, warp = int32_t(threadIdx.x) / kTile;
    const int32_t left = int32_t(blockIdx.x) % work.tiles_across * kTile;
    const int32_t top = int32_t(blockIdx.x) / work.tiles_across * kTile;
    const int64_t part = blockIdx.y, picture = work.first + part;
    const AugmentParams p = work.params[picture];
    const float* const pixels = work.scratch.pixels + part * 3 * size * size;
    const int before = operations_before_contrast(p);
    float mean = 0;
    if (before < 4) {
        for (uint32_t i = threadIdx.x; i < gridDim.x; i += kThreads) mean += work.scratch.sums[part * gridDim.x + i];
        mean = block_sum(mean, partial) / (float(size) * float(size));
    }
    const int32_t x = left + lane;
    if (!(p.sigma > 0.0f) || work.most_radius == 0) {  // without a radius there is no shared memory
        for (int j = 0; j < kPixels; ++j) {
            const int32_t y = top + warp + j * kRows;
            if (x < size && y < size) store(work, picture, y, x, finished(work, p, before, mean, pixels, y, x));
        }
        return;
    }

    const int32_t radius = min(blur_radius(p.sigma), work.most_radius), edge = kTile + 2 * radius;
    float* const tile = shared;                        // [3][edge][edge], with what lies around it
    float* const across = shared + 3 * edge * edge;    // [3][edge][kTile], blurred along x
    if (threadIdx.x == 0) blur_weights(p.sigma, radius, weights);
    for (int32_t i = threadIdx.x; i < edge * edge; i += kThreads) {
        const int32_t from_y = reflected(top - radius + i / edge, size), from_x = reflected(left - radius + i % edge, size);
        const Colour c = finished(work, p, before, mean, pixels, from_y, from_x);
        tile[i] = c.r;
        tile[edge * edge + i] = c.g;
        tile[2 * edge * edge + i] = c.b;
    }
    __syncthreads();
    for (int32_t row = warp; row < 3 * edge; row += kRows) {
        const float* const middle = tile + row * edge + lane + radius;
        float sum = weights[0] * middle[0];
        for (int32_t d = 1; d <= radius; ++d) sum = fused(weights[d], middle[-d] + middle[d], sum);
        across[row * kTile + lane] = sum;
    }
    __syncthreads();
    for (int j = 0; j < kPixels; ++j) {
        const int32_t row = warp + j * kRows, y = top + row;
        if (x >= size || y >= size) continue;
        float sum[3];
        for (int c = 0; c < 3; ++c) {
            const float* const middle = across + (c * edge + row + radius) * kTile + lane;
            sum[c] = weights[0] * middle[0];
            for (int32_t d = 1; d <= radius; ++d) {
                sum[c] = fused(weights[d], middle[-d * kTile] + middle[d * kTile], sum[c]);
            }
        }
        store(work, picture, y, x, {sum[0], sum[1], sum[2]});
    }
}

// How a part's memory is cut up; each piece begins at a multiple of 256 bytes.
struct Layout {
    int64_t spans, weights, pixels, sums;  // bytes of one picture
    int32_t taps_x, taps_y;

    Layout(const Pictures& pictures, const AugmentSpec& spec) {
        const auto size = int64_t(spec.image_size);
        const int64_t tiles = (size + kTile - 1) / kTile;
        taps_x = most_taps(pictures.width, pictures.height, spec);
        taps_y = most_taps(pictures.height, pictures.width, spec);
        spans = rounded_up(2 * size * int64_t(sizeof(Span)));
        weights = rounded_up((int64_t{taps_x} + taps_y) * size * int64_t(sizeof(float)));
        pixels = rounded_up(3 * size * size * int64_t(sizeof(float)));
        sums = rounded_up(tiles * tiles * int64_t(sizeof(float)));
    }
    static int64_t rounded_up(int64_t bytes) { return (bytes + 255) / 256 * 256; }
    int64_t bytes() const { return spans + weights + pixels + sums; }
};

}  // namespace

int64_t augment_scratch_bytes(const Pictures& pictures, const AugmentSpec& spec, int64_t number) {
    return number * Layout(pictures, spec).bytes();
}

int augment_draw_cuda(const Pictures& pictures, const AugmentSpec& spec, uint64_t seed, const int64_t* keys,
                      AugmentParams* params, int device, void* stream) {
    if (pictures.number == 0) return cudaSuccess;  // an empty grid is a launch error
    const OnDevice on_device(device);
    if (on_device.error() != cudaSuccess) return on_device.error();
    const auto blocks = unsigned((pictures.number + kThreads - 1) / kThreads);
    draw_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(pictures, spec, seed, keys, params);
    return cudaGetLastError();
}

int augment_apply_cuda(const Pictures& pictures, const AugmentSpec& spec, const AugmentParams* params, void* out,
                       AugmentOutput type, bool channels_last, void* scratch, int64_t scratch_bytes, int device,
                       void* stream) {
    if (pictures.number == 0) return cudaSuccess;
    const OnDevice on_device(device);
    if (on_device.error() != cudaSuccess) return on_device.error();
    const Layout layout(pictures, spec);
    const int64_t part = std::min<int64_t>({pictures.number, scratch_bytes / layout.bytes(), 65535});
    if (part == 0) return cudaErrorInvalidValue;  // not even one picture fits

    Work work{pictures, params, out, type, channels_last, int32_t(spec.image_size), 0, 0, {}, {}, {}, 0};
    work.tiles_across = (work.size + kTile - 1) / kTile;
    work.most_radius = spec.blur > 0 ? blur_radius(float(spec.sigma_high)) : 0;
    for (int c = 0; c < 3; ++c) {
        work.factor[c] = float(1 / spec.std[c]);
        work.offset[c] = float(-spec.mean[c] / spec.std[c]);
    }
    auto* const memory = static_cast<uint8_t*>(scratch);
    work.scratch.spans = reinterpret_cast<Span*>(memory);
    work.scratch.weights = reinterpret_cast<float*>(memory + part * layout.spans);
    work.scratch.pixels = reinterpret_cast<float*>(memory + part * (layout.spans + layout.weights));
    work.scratch.sums = reinterpret_cast<float*>(memory + part * (layout.spans + layout.weights + layout.pixels));
    work.scratch.taps_x = layout.taps_x, work.scratch.taps_y = layout.taps_y;

    const auto shared = spec.blur > 0 ? int(finish_shared_floats(work.most_radius) * sizeof(float)) : 0;
    const cudaError_t error = cudaFuncSetAttribute(finish_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return error;
    const auto queue = static_cast<cudaStream_t>(stream);
    const auto tiles = unsigned(work.tiles_across) * unsigned(work.tiles_across);
    for (; work.first < pictures.number; work.first += part) {
        const auto number = unsigned(std::min(part, pictures.number - work.first));
        plan_kernel<<<dim3(unsigned(2 * work.size + kThreads - 1) / kThreads, number), kThreads, 0, queue>>>(work);
        resize_kernel<<<dim3(tiles, number), kThreads, 0, queue>>>(work);
        finish_kernel<<<dim3(tiles, number), kThreads, shared, queue>>>(work);
    }
    return cudaGetLastError();
}

}  // namespace stablerep

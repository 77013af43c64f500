#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda_device.h"
#include "resample.h"
#include "to_pixels.h"

namespace stablerep {
namespace {

constexpr int kTileWidth = 32, kTileHeight = 8, kThreads = kTileWidth * kTileHeight;
constexpr int kMostPicturesAtOnce = 65535;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

// Whether all threads of the block find that picture b is written, and not one after it into the same slot.
__device__ bool is_written(const ToPixels& call, int64_t b) {
    if (call.slots == nullptr) return true;
    const int64_t slot = call.slots[b];
    int later = 0;
    for (int64_t i = b + 1 + threadIdx.x; i < call.pictures; i += kThreads) later |= call.slots[i] == slot;
    return !__syncthreads_or(later) && slot >= 0 && slot < call.pool;
}

// A thread makes one pixel. First down the rows of its window and then along the columns, as the host does. Windows of
// neighbours overlap: of four reads of a number three come from the first-level cache.
template <typename T, bool kResize>
__global__ void __launch_bounds__(kThreads) to_pixels_kernel(ToPixels call, int most_row_taps) {
    extern __shared__ float shared_weights[];
    float* const row_weights = shared_weights;                                   // [most_row_taps, kTileHeight]
    float* const column_weights = row_weights + most_row_taps * kTileHeight;     // [most_column_taps, kTileWidth]
    const int tile_x = threadIdx.x % kTileWidth, tile_y = threadIdx.x / kTileWidth;
    const int x = blockIdx.x * kTileWidth + tile_x, y = blockIdx.y * kTileHeight + tile_y;
    const bool inside = x < call.out_width && y < call.out_height;
    Window rows{call.top + y, 1, 0.0f}, columns{call.left + x, 1, 0.0f};
    if (kResize) {
        const ResampledAxis row_axis = make_axis(call.height, call.resized_height);
        const ResampledAxis column_axis = make_axis(call.width, call.resized_width);
        if (inside) {
            rows = window_of(row_axis, call.top + y);
            columns = window_of(column_axis, call.left + x);
            if (tile_x == 0) fill_weights(row_axis, rows, row_weights + tile_y, kTileHeight);
            if (tile_y == 0) fill_weights(column_axis, columns, column_weights + tile_x, kTileWidth);
        }
        __syncthreads();
    }
    const int64_t plane = int64_t{call.height} * call.width;
    const int64_t channel_stride = call.channels_last ? 1 : plane;
    const int64_t column_stride = call.channels_last ? 3 : 1;
    const int64_t row_stride = column_stride * call.width;
    const int64_t corner = rows.first * row_stride + columns.first * column_stride;
    for (int64_t b = blockIdx.z; b < call.pictures; b += gridDim.z) {
        if (!is_written(call, b) || !inside) continue;  // the first is the same for the whole block, and synchronises it
        const T* const source = static_cast<const T*>(call.images) + b * 3 * plane + corner;
        float level[3];
        if (kResize) {
            level[0] = level[1] = level[2] = 0.0f;
            for (int i = 0; i < columns.count; ++i) {
                const T* const column = source + i * column_stride;
                float sum[3] = {0.0f, 0.0f, 0.0f};
                for (int j = 0; j < rows.count; ++j) {
                    const float weight = row_weights[j * kTileHeight + tile_y];
                    const T* const at = column + j * row_stride;
#pragma unroll
                    for (int c = 0; c < 3; ++c) sum[c] += weight * to_float(at[c * channel_stride]);
                }
                const float weight = column_weights[i * kTileWidth + tile_x];
#pragma unroll
                for (int c = 0; c < 3; ++c) level[c] += weight * sum[c];
            }
        } else {
#pragma unroll
            for (int c = 0; c < 3; ++c) level[c] = to_float(source[c * channel_stride]);
        }
        const int64_t slot = call.slots == nullptr ? b : call.slots[b];
        uint8_t* const out = call.out + ((slot * call.out_height + y) * call.out_width + x) * 3;
#pragma unroll
        for (int c = 0; c < 3; ++c) out[c] = grey_level(level[c]);
    }
}

template <typename T>
void launch(const ToPixels& call, cudaStream_t stream) {
    const dim3 grid((call.out_width + kTileWidth - 1) / kTileWidth, (call.out_height + kTileHeight - 1) / kTileHeight,
                    unsigned(std::min<int64_t>(call.pictures, kMostPicturesAtOnce)));
    if (call.resized_height == call.height && call.resized_width == call.width) {
        to_pixels_kernel<T, false><<<grid, kThreads, 0, stream>>>(call, 0);
        return;
    }
    const int row_taps = widest_window(make_axis(call.height, call.resized_height));
    const int column_taps = widest_window(make_axis(call.width, call.resized_width));
    // 64 times smaller, by rounding up to 96 along the longer side: 29 KB, of 48.
    const size_t bytes = sizeof(float) * (row_taps * kTileHeight + column_taps * kTileWidth);
    to_pixels_kernel<T, true><<<grid, kThreads, bytes, stream>>>(call, row_taps);
}

}  // namespace

int to_pixels_cuda(const ToPixels& call, int device, void* stream) {
    if (call.pictures == 0 || call.pool == 0) return cudaSuccess;  // an empty grid is a launch error
    const OnDevice on_device(device);
    if (on_device.error() != cudaSuccess) return on_device.error();
    const auto queue = static_cast<cudaStream_t>(stream);
    if (call.dtype == Dtype::float32) {
        launch<float>(call, queue);
    } else if (call.dtype == Dtype::bfloat16) {
        launch<__nv_bfloat16>(call, queue);
    } else {
        launch<__half>(call, queue);
    }
    return cudaGetLastError();
}

}  // namespace stablerep

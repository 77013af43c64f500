// Pictures of a VAE, about -1..1, to grey levels: antialiased resize, centre crop, rounding, interleaving, in one pass.
#pragma once

#include <cstdint>

#include "floats.h"

namespace stablerep {

// All pointers of one device; none is kept.
struct ToPixels {
    const void* images;    // [pictures, 3, height, width] of dtype, in memory [pictures, height, width, 3] if channels_last
    uint8_t* out;          // [pool, out_height, out_width, 3]
    const int64_t* slots;  // [pictures], picture b goes to out[slots[b]]; null: to out[b]
    int64_t pictures, pool;
    int height, width;                  // of images
    int resized_height, resized_width;  // before the crop; the shorter side at most 64 times smaller
    int top, left;                      // of the crop
    int out_height, out_width;          // of the crop
    bool channels_last;
    Dtype dtype;
};

// A slot outside the pool is passed over; of equal slots the last picture counts.
void to_pixels(const ToPixels& call, int threads);

// The same on a CUDA device; queued on the stream, never waits. Returns a cudaError_t.
int to_pixels_cuda(const ToPixels& call, int device, void* stream);

}  // namespace stablerep

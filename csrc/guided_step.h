// One step of a linear denoising solver with guidance, in one pass over the latents: see solver.h.
#pragma once

#include <cstdint>

#include "floats.h"

namespace stablerep {

// All pointers of one device; none is kept. latents_dtype is float32, or output_dtype is the same.
struct GuidedStep {
    const void* latents;          // [pictures, elements] of latents_dtype
    const void* output;           // [2 * pictures, elements] of output_dtype if guided, else [pictures, elements]
    const void* previous_x0;      // [pictures, elements] of latents_dtype; read only if the row's e is not 0
    const float* table;           // [steps, 5]
    const int64_t* step;          // []
    const float* guidance_scale;  // [pictures] if scale_per_picture, else []; read only if guided
    void* next;                   // [pictures, elements] of latents_dtype
    void* x0;                     // [pictures, elements] of latents_dtype
    int64_t pictures, elements, steps;
    bool guided, scale_per_picture;
    Dtype latents_dtype, output_dtype;
};

void guided_step(const GuidedStep& call, int threads);

// The same on a CUDA device; queued on the stream, never waits. Returns a cudaError_t.
int guided_step_cuda(const GuidedStep& call, int device, void* stream);

}  // namespace stablerep

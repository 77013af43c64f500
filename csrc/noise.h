// Normal noise of images, a pure function of (seed, prompt id, index): see philox.h.
#pragma once

#include <cstdint>

namespace stablerep {

// Of each index the low 32 bits count. No pointer is kept; elements < 2^34.
void philox_normal(uint64_t seed,
                   const int64_t* prompt_ids,  // [images]
                   const int64_t* indices,     // [images]
                   int64_t images, int64_t elements,
                   float* out,  // [images, elements]
                   int threads);

// The same on a CUDA device, all pointers of that device; queued on the stream, never waits. Returns a cudaError_t.
int philox_normal_cuda(uint64_t seed,
                       const int64_t* prompt_ids,  // [images]
                       const int64_t* indices,     // [images]
                       int64_t images, int64_t elements,
                       float* out,  // [images, elements]
                       int device, void* stream);

}  // namespace stablerep

// The three kinds of floating point numbers that latents and pictures come in; all arithmetic is float.
#pragma once

#include <cstdint>

namespace stablerep {

enum class Dtype : int { float32 = 0, bfloat16 = 1, float16 = 2 };  // as in stablerep/ops/impls.py

// n numbers at data[first ..] as floats: data itself if it holds floats, else converted into buffer [n].
const float* as_floats(Dtype dtype, const void* data, int64_t first, int64_t n, float* buffer);

// Rounds n floats to the nearest (ties to even) into data[first ..].
void store_floats(Dtype dtype, const float* floats, int64_t first, int64_t n, void* data);

}  // namespace stablerep

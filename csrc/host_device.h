// Marks arithmetic that host and device share. On the host such a function is always inlined: one call left in a loop and
// the loop is no vector loop.
#pragma once

#if defined(__CUDACC__)
#define STABLEREP_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define STABLEREP_HOST_DEVICE inline __attribute__((always_inline))
#else
#define STABLEREP_HOST_DEVICE inline
#endif

// CUDA's runtime and kernel language on the host, as far as csrc/*.cu uses them: a block's threads are fibers that run
// in random order from barrier to barrier, and shared memory is NaN when a block begins. So AddressSanitizer sees every
// access of a kernel, and a barrier that is missing changes results. test_cuda_on_host.py turns f<<<...>>>(...) into
// cuda_on_host::launch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(threads)
#define __shared__ static __attribute__((section("cuda_shared")))  // compiled with -fsanitize-sections=cuda_shared

using std::max;
using std::min;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline dim3 threadIdx(0, 0, 0), blockIdx(0, 0, 0), blockDim, gridDim;  // of the fiber that runs

namespace cuda_on_host {

// Runs the kernel to its end; dies, naming what is wrong, where CUDA would refuse the launch or hang.
void launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            const std::function<void()>& thread);

void allow_shared(const void* kernel, int bytes);
void* dynamic_shared();
void block_barrier();
bool block_or(bool value);
float other_lanes(float value, int lane_mask);

}  // namespace cuda_on_host

inline void __syncthreads() { cuda_on_host::block_barrier(); }
inline int __syncthreads_or(int value) { return cuda_on_host::block_or(value != 0); }
inline float __shfl_xor_sync(unsigned, float value, int lane_mask) { return cuda_on_host::other_lanes(value, lane_mask); }

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no device"; }

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
    cuda_on_host::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
    return cudaSuccess;
}

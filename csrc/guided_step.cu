#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda_device.h"
#include "guided_step.h"
#include "solver.h"

namespace stablerep {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 16384;  // beyond, blocks take more than one turn

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

__device__ __forceinline__ void round_to(float value, float& out) { out = value; }
__device__ __forceinline__ void round_to(float value, __nv_bfloat16& out) { out = __float2bfloat16_rn(value); }
__device__ __forceinline__ void round_to(float value, __half& out) { out = __float2half_rn(value); }

// n neighbours, loaded and stored by one instruction where n * sizeof(T) is 4, 8 or 16 bytes.
template <typename T, int n>
struct alignas(sizeof(T) * n) Pack {
    T at[n];
};

// A thread takes kWidth neighbouring numbers of one picture; elements is a multiple of kWidth.
template <typename Latents, typename Output, int kWidth>
__global__ void __launch_bounds__(kThreads) guided_step_kernel(GuidedStep call) {
    using LatentsPack = Pack<Latents, kWidth>;
    using OutputPack = Pack<Output, kWidth>;
    const SolverRow row = solver_row(call.table, call.steps, *call.step);
    const int64_t packs_per_picture = call.elements / kWidth;
    const int64_t packs = call.pictures * packs_per_picture;
    const float one_scale = call.guided && !call.scale_per_picture ? *call.guidance_scale : 0.0f;
    for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < packs; i += int64_t{gridDim.x} * kThreads) {
        const LatentsPack x = static_cast<const LatentsPack*>(call.latents)[i];
        const OutputPack without = static_cast<const OutputPack*>(call.output)[i];
        OutputPack with_text = without;
        float scale = one_scale;
        if (call.guided) {
            with_text = static_cast<const OutputPack*>(call.output)[i + packs];
            if (call.scale_per_picture) scale = call.guidance_scale[i / packs_per_picture];
        }
        LatentsPack before;
        if (row.e != 0) before = static_cast<const LatentsPack*>(call.previous_x0)[i];
        LatentsPack next, x0;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
            const float plain = to_float(without.at[j]);
            const float output = call.guided ? guide(plain, to_float(with_text.at[j]), scale) : plain;
            const Solved solved = solve(row, to_float(x.at[j]), output, row.e != 0 ? to_float(before.at[j]) : 0.0f);
            round_to(solved.next, next.at[j]);
            round_to(solved.x0, x0.at[j]);
        }
        static_cast<LatentsPack*>(call.next)[i] = next;
        static_cast<LatentsPack*>(call.x0)[i] = x0;
    }
}

bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

template <typename Latents, typename Output>
void launch(const GuidedStep& call, cudaStream_t stream) {
    constexpr int kWidth = 16 / sizeof(Latents);  // 16 bytes of the wider; a half output beside float latents has 8
    constexpr size_t kLatents = kWidth * sizeof(Latents), kOutput = kWidth * sizeof(Output);
    const bool wide = call.elements % kWidth == 0 && aligned(call.latents, kLatents) && aligned(call.output, kOutput) &&
                      aligned(call.previous_x0, kLatents) && aligned(call.next, kLatents) && aligned(call.x0, kLatents);
    const int64_t packs = call.pictures * call.elements / (wide ? kWidth : 1);
    const auto blocks = unsigned(std::min<int64_t>((packs + kThreads - 1) / kThreads, kMostBlocks));
    if (wide) {
        guided_step_kernel<Latents, Output, kWidth><<<blocks, kThreads, 0, stream>>>(call);
    } else {
        guided_step_kernel<Latents, Output, 1><<<blocks, kThreads, 0, stream>>>(call);
    }
}

}  // namespace

int guided_step_cuda(const GuidedStep& call, int device, void* stream) {
    if (call.pictures == 0 || call.elements == 0) return cudaSuccess;  // an empty grid is a launch error
    const OnDevice on_device(device);
    if (on_device.error() != cudaSuccess) return on_device.error();
    const auto queue = static_cast<cudaStream_t>(stream);
    if (call.latents_dtype == Dtype::bfloat16) {
        launch<__nv_bfloat16, __nv_bfloat16>(call, queue);
    } else if (call.latents_dtype == Dtype::float16) {
        launch<__half, __half>(call, queue);
    } else if (call.output_dtype == Dtype::bfloat16) {
        launch<float, __nv_bfloat16>(call, queue);
    } else if (call.output_dtype == Dtype::float16) {
        launch<float, __half>(call, queue);
    } else {
        launch<float, float>(call, queue);
    }
    return cudaGetLastError();
}

}  // namespace stablerep

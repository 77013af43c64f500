#include <cuda_runtime.h>

#include <algorithm>

#include "cuda_device.h"
#include "noise.h"
#include "philox.h"

namespace stablerep {
namespace {

constexpr int kThreads = 256;

// One thread makes whole blocks of four elements; x runs over the blocks of an image, y over images.
__global__ void philox_normal_kernel(uint64_t seed, const int64_t* prompt_ids, const int64_t* indices, int64_t images,
                                     int64_t elements, float* out) {
    const int64_t blocks = (elements + 3) / 4;
    for (int64_t image = blockIdx.y; image < images; image += gridDim.y) {
        const auto prompt_id = uint64_t(prompt_ids[image]);
        const auto index = uint32_t(indices[image]);
        float* const row = out + image * elements;
        const bool aligned = (reinterpret_cast<uintptr_t>(row) & 15) == 0;
        for (int64_t b = blockIdx.x * int64_t{kThreads} + threadIdx.x; b < blocks; b += int64_t{gridDim.x} * kThreads) {
            const Normals n = normal_block(seed, prompt_id, index, uint32_t(b));
            const float4 four = make_float4(n.n0, n.n1, n.n2, n.n3);
            const int64_t rest = elements - 4 * b;
            if (aligned && rest >= 4) {
                *reinterpret_cast<float4*>(row + 4 * b) = four;
            } else {
                row[4 * b] = four.x;
                if (rest > 1) row[4 * b + 1] = four.y;
                if (rest > 2) row[4 * b + 2] = four.z;
                if (rest > 3) row[4 * b + 3] = four.w;
            }
        }
    }
}

}  // namespace

int philox_normal_cuda(uint64_t seed, const int64_t* prompt_ids, const int64_t* indices, int64_t images,
                       int64_t elements, float* out, int device, void* stream) {
    if (images == 0 || elements == 0) return cudaSuccess;  // an empty grid is a launch error
    const OnDevice on_device(device);
    if (on_device.error() != cudaSuccess) return on_device.error();
    const int64_t blocks = (elements + 3) / 4;
    const dim3 grid(unsigned(std::min<int64_t>((blocks + kThreads - 1) / kThreads, 1 << 20)),
                    unsigned(std::min<int64_t>(images, 65535)));
    philox_normal_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(seed, prompt_ids, indices, images,
                                                                                   elements, out);
    return cudaGetLastError();
}

}  // namespace stablerep

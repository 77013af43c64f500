#include "noise.h"

#include <algorithm>

#include "philox.h"
#include "vector_clones.h"

namespace stablerep {
namespace {

constexpr int64_t kBlocksPerChunk = 1024;  // 16 KiB of output: stays in the first-level cache, and is work enough to share

STABLEREP_VECTOR_CLONES
void fill_chunk(uint64_t seed, uint64_t prompt_id, uint32_t index, int64_t first_block, int64_t elements, float* out) {
    const int64_t first = 4 * first_block;
    const int64_t end = std::min(elements, first + 4 * kBlocksPerChunk);
    const int64_t whole_blocks = (end - first) / 4;
    float* const chunk = out + first;
    for (int64_t b = 0; b < whole_blocks; ++b) {
        const Normals n = normal_block(seed, prompt_id, index, uint32_t(first_block + b));
        chunk[4 * b + 0] = n.n0;
        chunk[4 * b + 1] = n.n1;
        chunk[4 * b + 2] = n.n2;
        chunk[4 * b + 3] = n.n3;
    }
    if (const int64_t rest = (end - first) % 4) {
        const Normals n = normal_block(seed, prompt_id, index, uint32_t(first_block + whole_blocks));
        std::copy_n(&n.n0, rest, chunk + 4 * whole_blocks);
    }
}

}  // namespace

void philox_normal(uint64_t seed, const int64_t* prompt_ids, const int64_t* indices, int64_t images, int64_t elements,
                   float* out, [[maybe_unused]] int threads) {
    const int64_t blocks = (elements + 3) / 4;
    const int64_t chunks = (blocks + kBlocksPerChunk - 1) / kBlocksPerChunk;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (images * chunks > 8) schedule(static)
#endif
    for (int64_t task = 0; task < images * chunks; ++task) {
        const int64_t image = task / chunks;
        fill_chunk(seed, uint64_t(prompt_ids[image]), uint32_t(indices[image]), task % chunks * kBlocksPerChunk, elements,
                   out + image * elements);
    }
}

}  // namespace stablerep

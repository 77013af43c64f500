#include "guided_step.h"

#include <algorithm>

#include "solver.h"
#include "vector_clones.h"

namespace stablerep {
namespace {

constexpr int64_t kChunk = 1024;             // seven buffers of 4 KiB stay in the first-level cache
constexpr int64_t kElementsToShare = 1 << 17;  // below, waking the threads takes longer than the work

// with_text and previous_x0 may be null: no guidance, e = 0.
STABLEREP_VECTOR_CLONES
void solve_chunk(const SolverRow& row, float scale, int64_t n, const float* __restrict x, const float* __restrict without,
                 const float* __restrict with_text, const float* __restrict previous_x0, float* __restrict next,
                 float* __restrict x0) {
    const SolverRow r = row;
    for (int64_t i = 0; i < n; ++i) {
        const float output = with_text ? guide(without[i], with_text[i], scale) : without[i];
        const Solved solved = solve(r, x[i], output, previous_x0 ? previous_x0[i] : 0.0f);
        next[i] = solved.next;
        x0[i] = solved.x0;
    }
}

void step_chunk(const GuidedStep& call, const SolverRow& row, int64_t picture, int64_t offset) {
    alignas(64) float x[kChunk], without[kChunk], with_text[kChunk], before[kChunk], next[kChunk], x0[kChunk];
    const int64_t n = std::min(kChunk, call.elements - offset);
    const int64_t first = picture * call.elements + offset;
    const int64_t guided_first = first + call.pictures * call.elements;
    const float scale = call.guided ? call.guidance_scale[call.scale_per_picture ? picture : 0] : 1.0f;
    const bool in_place = call.latents_dtype == Dtype::float32;
    float* const next_out = in_place ? static_cast<float*>(call.next) + first : next;
    float* const x0_out = in_place ? static_cast<float*>(call.x0) + first : x0;
    solve_chunk(row, scale, n, as_floats(call.latents_dtype, call.latents, first, n, x),
                as_floats(call.output_dtype, call.output, first, n, without),
                call.guided ? as_floats(call.output_dtype, call.output, guided_first, n, with_text) : nullptr,
                row.e != 0 ? as_floats(call.latents_dtype, call.previous_x0, first, n, before) : nullptr, next_out,
                x0_out);
    if (!in_place) {
        store_floats(call.latents_dtype, next, first, n, call.next);
        store_floats(call.latents_dtype, x0, first, n, call.x0);
    }
}

}  // namespace

void guided_step(const GuidedStep& call, [[maybe_unused]] int threads) {
    const SolverRow row = solver_row(call.table, call.steps, *call.step);
    const int64_t chunks = (call.elements + kChunk - 1) / kChunk;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (call.pictures * call.elements >= kElementsToShare) schedule(static)
#endif
    for (int64_t task = 0; task < call.pictures * chunks; ++task) {
        step_chunk(call, row, task / chunks, task % chunks * kChunk);
    }
}

}  // namespace stablerep

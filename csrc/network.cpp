#include "network.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "network_step.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace stablerep {
namespace {

constexpr int64_t kTaskFloats = 1 << 19;  // 2 MiB: what the largest map of all pictures of a task may take

auto* steps_for(int lanes) {
#ifdef STABLEREP_NETWORK_X86
    if ((lanes == 0 || lanes == 16) && __builtin_cpu_supports("x86-64-v4")) return lanes16::run_step;
    if ((lanes == 0 || lanes == 8) && __builtin_cpu_supports("x86-64-v3")) return lanes8::run_step;
#endif
    if (lanes != 0 && lanes != 4) throw std::invalid_argument("this processor has no vectors of so many floats");
    return lanes4::run_step;
}

// Scratch of one thread.
int64_t floats_between(const NetworkStep& step) {
    switch (step.kind) {
        case StepKind::geglu: return 2 * kTokens * kPanel;
        case StepKind::group_norm: return 2 * step.in_channels;
        case StepKind::conv3x3: {
            const ConvShape shape = conv_shape(step);
            return step.in_channels * (shape.plane + 2) + 36 * (shape.in_apart + shape.out_apart);
        }
        case StepKind::conv3x3_stride2: return kTokens * 9 * step.in_channels;
        case StepKind::attention: {
            const int64_t keys = rounded_up(step.text < 0 ? int64_t{step.height} * step.width : step.keys);
            return (kQueries + step.out_channels / step.heads) * keys;
        }
        default: return 0;
    }
}

}  // namespace

void Network::Free::operator()(float* memory) const { std::free(memory); }

Network::Network(std::vector<NetworkSlot> slots, std::vector<NetworkStep> steps, int lanes)
    : run_step_(steps_for(lanes)), slots_(std::move(slots)), steps_(std::move(steps)) {
    int64_t largest = 1;
    for (const NetworkSlot& slot : slots_) {
        starts_.push_back(row_floats_);
        row_floats_ += slot.pixels * slot.channels;
        largest = std::max(largest, slot.pixels * slot.channels);
    }
    for (const NetworkStep& step : steps_) scratch_floats_ = std::max(scratch_floats_, floats_between(step));
    most_rows_ = std::max<int64_t>(2, kTaskFloats / largest);
}

void Network::run(const NetworkCall& call, int threads) {
    const std::lock_guard<std::mutex> alone(running_);
    if (call.pictures == 0) return;
    const int64_t most = most_rows_ / call.halves;
    int64_t tasks = (call.pictures + most - 1) / most;
    threads = int(std::min<int64_t>(threads, call.pictures));
    tasks = std::min(call.pictures, (tasks + threads - 1) / threads * threads);  // all threads are done together
    const size_t bytes = size_t(most_rows_ * row_floats_ + scratch_floats_ + 63) / 16 * 64;
    while (memory_.size() < size_t(threads)) {
        Memory memory(static_cast<float*>(std::aligned_alloc(64, bytes)));
        if (!memory) throw std::bad_alloc();
        memory_.push_back(std::move(memory));
    }
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
#endif
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t first = call.pictures * task / tasks, end = call.pictures * (task + 1) / tasks;
#ifdef _OPENMP
        run_task(call, first, end - first, memory_[omp_get_thread_num()].get());
#else
        run_task(call, first, end - first, memory_[0].get());
#endif
    }
}

void Network::run_task(const NetworkCall& call, int64_t first, int64_t pictures, float* memory) const {
    float* const scratch = memory + most_rows_ * row_floats_;
    // Of a slot that both halves share there is one half.
    const auto at = [&](const NetworkView& view, int half) -> float* {
        if (view.slot < 0) return nullptr;
        const NetworkSlot& slot = slots_[view.slot];
        const int64_t row = slot.shared ? 0 : half * pictures;
        return memory + most_rows_ * starts_[view.slot] + row * slot.pixels * slot.channels + view.offset;
    };
    const NetworkSlot &in = slots_[0], &out = slots_[1];
    float* const input = memory + most_rows_ * starts_[0];
    std::memset(input, 0, size_t(pictures * in.pixels * in.channels) * sizeof(float));
    for (int64_t p = 0; p < pictures * in.pixels; ++p) {
        std::memcpy(input + p * in.channels, call.input + (first * in.pixels + p) * call.in_channels,
                    size_t(call.in_channels) * sizeof(float));
    }
    std::vector<int64_t> text_rows(call.text_rows ? call.halves * pictures : 0);
    for (size_t i = 0; i < text_rows.size(); ++i) {
        text_rows[i] = call.text_rows[int64_t(i) / pictures * call.pictures + first + int64_t(i) % pictures];
    }
    for (const NetworkStep& step : steps_) {
        // A step on both halves that reads what they share takes one after the other.
        const auto is_shared = [&](const NetworkView& view) { return view.slot >= 0 && slots_[view.slot].shared; };
        const bool one_by_one = is_shared(step.in) || is_shared(step.residual);
        const int turns = step.shared || !one_by_one ? 1 : call.halves;
        for (int half = 0; half < turns; ++half) {
            StepRows rows{};
            rows.in = at(step.in, half);
            rows.out = at(step.out, half);
            rows.residual = at(step.residual, half);
            rows.key = step.text < 0 ? at(step.key, half) : call.keys[step.text];
            rows.value = step.text < 0 ? at(step.value, half) : call.values[step.text];
            rows.bias = step.time_bias < 0 ? step.bias : call.time_bias + step.time_bias;
            rows.text_rows = text_rows.empty() ? nullptr : text_rows.data() + half * pictures;
            rows.scratch = scratch;
            rows.in_stride = slots_[step.in.slot].channels;
            rows.out_stride = slots_[step.out.slot].channels;
            rows.residual_stride = step.residual.slot < 0 ? 0 : slots_[step.residual.slot].channels;
            rows.rows = step.shared || turns > 1 ? pictures : call.halves * pictures;
            rows.pixels = slots_[step.in.slot].pixels;
            run_step_(step, rows);
        }
    }
    for (int half = 0; half < call.halves; ++half) {
        const float* const output = at({1, 0}, half);
        float* const to = call.output + (half * call.pictures + first) * out.pixels * call.out_channels;
        for (int64_t p = 0; p < pictures * out.pixels; ++p) {
            std::memcpy(to + p * call.out_channels, output + p * out.channels, size_t(call.out_channels) * sizeof(float));
        }
    }
}

}  // namespace stablerep

#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "cuda_runtime.h"

extern unsigned char __start_cuda_shared[], __stop_cuda_shared[];

namespace cuda_on_host {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = 1 << 16, kSharedBytes = 48 << 10, kSharedBytesOptIn = 227 << 10;

enum class State { ready, at_warp_barrier, at_block_barrier, ended };

struct Fiber {
    unsigned index;
    State state;
    ucontext_t context;
    void* fake_stack;  // AddressSanitizer's
    std::unique_ptr<unsigned char[]> stack{new unsigned char[kStack]};
};

std::vector<Fiber> fibers;
unsigned threads;  // of the block that runs
Fiber* running;
ucontext_t scheduler;
void* scheduler_fake_stack;
const void* scheduler_stack;
size_t scheduler_stack_bytes;
const std::function<void()>* body;
const char* kernel_name;
std::unique_ptr<unsigned char[]> shared;
std::map<const void*, size_t> allowed;
std::vector<float> lanes;
bool any;
std::mt19937 order(1);

void die(const char* what) {
    std::fprintf(stderr, "%s: %s\n", kernel_name, what);
    std::abort();
}

void enter() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
    (*body)();
    running->state = State::ended;
    __sanitizer_start_switch_fiber(nullptr, scheduler_stack, scheduler_stack_bytes);
    swapcontext(&running->context, &scheduler);
}

void wait_as(State state) {
    running->state = state;
    __sanitizer_start_switch_fiber(&running->fake_stack, scheduler_stack, scheduler_stack_bytes);
    swapcontext(&running->context, &scheduler);
    __sanitizer_finish_switch_fiber(running->fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}

void resume(Fiber& fiber) {
    running = &fiber;
    threadIdx = dim3(fiber.index, 0, 0);
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack.get(), kStack);
    swapcontext(&scheduler, &fiber.context);
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
}

// Lets go on whoever has met all others; false: nobody is left.
bool open_barriers() {
    bool opened = false;
    for (unsigned first = 0; first < threads; first += kWarp) {
        unsigned waiting = 0;
        for (unsigned i = first; i < first + kWarp; ++i) waiting += fibers[i].state == State::at_warp_barrier;
        if (waiting != 0 && waiting != kWarp) continue;
        for (unsigned i = first; waiting != 0 && i < first + kWarp; ++i) fibers[i].state = State::ready, opened = true;
    }
    if (opened) return true;
    unsigned waiting = 0, ended = 0;
    for (unsigned i = 0; i < threads; ++i) {
        waiting += fibers[i].state == State::at_block_barrier;
        ended += fibers[i].state == State::ended;
    }
    if (ended == threads) return false;
    if (waiting != threads) die("a barrier that not all threads reach");
    for (unsigned i = 0; i < threads; ++i) fibers[i].state = State::ready;
    return true;
}

// Over AddressSanitizer's gaps too.
__attribute__((no_sanitize("address"))) void forget_shared(size_t dynamic_bytes) {
    for (volatile unsigned char* byte = __start_cuda_shared; byte < __stop_cuda_shared; ++byte) *byte = 0xFF;
    shared.reset(new unsigned char[dynamic_bytes]);
    std::fill_n(shared.get(), dynamic_bytes, 0xFF);
}

void run_block(size_t shared_bytes) {
    forget_shared(shared_bytes);
    std::vector<Fiber*> turns;
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        fiber.index = i, fiber.state = State::ready;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
        turns.push_back(&fiber);
    }
    do {
        std::shuffle(turns.begin(), turns.end(), order);
        for (Fiber* fiber : turns) {
            if (fiber->state == State::ready) resume(*fiber);
        }
    } while (open_barriers());
}

}  // namespace

void launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
            const std::function<void()>& thread) {
    kernel_name = name, body = &thread, gridDim = grid, blockDim = block, threads = block.x;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) {
        die("a grid that CUDA refuses");
    }
    if (block.y != 1 || block.z != 1 || threads == 0 || threads > 1024 || threads % kWarp != 0) die("a block of odd size");
    const size_t limit = allowed.count(kernel) ? std::max(kSharedBytes, allowed[kernel]) : kSharedBytes;
    if (shared_bytes > limit) die("more shared memory than it was allowed");
    while (fibers.size() < threads) fibers.emplace_back();
    lanes.assign(threads, 0.0f);
    any = false;
    std::vector<unsigned> blocks(size_t(grid.x) * grid.y * grid.z);
    for (unsigned i = 0; i < blocks.size(); ++i) blocks[i] = i;
    std::shuffle(blocks.begin(), blocks.end(), order);
    for (const unsigned i : blocks) {
        blockIdx = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
        run_block(shared_bytes);
    }
}

void allow_shared(const void* kernel, int bytes) {
    if (size_t(bytes) > kSharedBytesOptIn) die("more shared memory than a block may have");
    allowed[kernel] = size_t(bytes);
}

void* dynamic_shared() { return shared.get(); }

void block_barrier() { wait_as(State::at_block_barrier); }

bool block_or(bool value) {
    any = any || value;
    block_barrier();
    const bool found = any;
    block_barrier();
    any = false;
    block_barrier();
    return found;
}

float other_lanes(float value, int lane_mask) {
    const unsigned me = running->index;
    lanes[me] = value;
    wait_as(State::at_warp_barrier);
    const float other = lanes[me ^ unsigned(lane_mask)];
    wait_as(State::at_warp_barrier);
    return other;
}

}  // namespace cuda_on_host

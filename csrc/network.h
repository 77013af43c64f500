// A convolutional network with attention as a list of steps over float32 maps [pixels, channels], on the CPU. Pictures
// do not meet: a task takes a few of them through all steps, its maps stay in the processor's cache, and no thread waits
// for another but at the end. A picture's numbers are the same whatever its neighbours, the batch and the threads are.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace stablerep {

enum class StepKind : int { copy, matmul, geglu, layer_norm, group_norm, conv3x3, conv3x3_stride2, attention };

// Columns [offset, offset + channels) of a map; slot -1: none.
struct NetworkView {
    int slot = -1;
    int64_t offset = 0;
};

// Channels are multiples of 16. Weights [K, N] lie in panels of 48 columns, the last one narrower: [panel][K][columns].
struct NetworkStep {
    StepKind kind = StepKind::copy;
    bool shared = false;        // with guidance: the same for both halves of the batch, computed once
    int height = 1, width = 1;  // of the input map, after `upsample`
    int64_t in_channels = 0, out_channels = 0;
    NetworkView in, out;
    NetworkView residual;       // added to the output of matmul and conv3x3; may be the output itself
    NetworkView key, value;     // attention among the tokens of a picture
    int text = -1;              // attention: which keys and values of the texts instead
    const float* weights = nullptr;  // matmul [in, out]; geglu [in, out] and [in, out]; conv3x3 [36][in, out];
                                     // conv3x3_stride2 [9 in, out]
    const float* bias = nullptr;     // [out], geglu [2 out]; may be null
    int64_t time_bias = -1;          // instead of bias: where in the time embedding's vector
    const float* norm_weight = nullptr;  // [in] of layer_norm, group_norm, and of conv3x3 if groups > 0
    const float* norm_bias = nullptr;
    int groups = 0;
    float eps = 0, scale = 0;   // scale: of attention's scores
    bool silu = false;          // after group_norm, and after the norm of conv3x3
    bool upsample = false;      // conv3x3 reads its input map twice as wide and high, nearest neighbour
    int heads = 0;
    int64_t keys = 0;           // attention to a text: its tokens
};

// A map of every picture; all views of it have its stride, size / pixels.
struct NetworkSlot {
    int64_t pixels = 0, channels = 0;
    bool shared = false;  // holds one half of a guided batch
};

struct NetworkCall {
    const float* input;      // [pictures, pixels, in_channels]: slot 0, whose further channels are zero
    float* output;           // [halves * pictures, pixels, out_channels]: slot 1
    const float* time_bias;  // may be null
    std::vector<const float*> keys;    // of each text layer: [texts, heads, width of a head, keys rounded up to 16]
    std::vector<const float*> values;  // [texts, keys, heads * width]
    const int64_t* text_rows;          // [halves * pictures]; may be null
    int64_t pictures, in_channels, out_channels;
    int halves;  // 2: guidance, the second half of the batch has the first half's input
};

class Network {
public:
    // lanes: floats of a vector, 4, 8 or 16; 0: as many as the processor has. Throws std::invalid_argument for others.
    Network(std::vector<NetworkSlot> slots, std::vector<NetworkStep> steps, int lanes);
    void run(const NetworkCall& call, int threads);

private:
    using RunStep = void (*)(const NetworkStep&, const struct StepRows&);
    struct Free {
        void operator()(float* memory) const;
    };
    using Memory = std::unique_ptr<float, Free>;

    void run_task(const NetworkCall& call, int64_t first, int64_t pictures, float* memory) const;

    RunStep run_step_;
    std::vector<NetworkSlot> slots_;
    std::vector<NetworkStep> steps_;
    std::vector<int64_t> starts_;  // of each slot, in floats for one row
    int64_t row_floats_ = 0, scratch_floats_ = 0, most_rows_ = 0;
    std::vector<Memory> memory_;   // of each thread; kept, since fresh pages cost more than some steps
    std::mutex running_;
};

}  // namespace stablerep

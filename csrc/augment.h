// Strong augmentation: uint8 pictures of any size to normalised floating-point ones of one size.
// What is drawn and computed is said in stablerep/ops/strong_augment; the arithmetic is in augment_draws.h and
// augment_pixel.h, which host and device share.
#pragma once

#include <cstdint>

namespace stablerep {

struct AugmentSpec {  // all double: Python hands it over as one list, in this order
    double image_size;
    double scale_low, scale_high;
    double ratio_low, ratio_high, log_ratio_low, log_ratio_high;
    double flip, jitter;
    double brightness, contrast, saturation, hue;
    double grey, blur, sigma_low, sigma_high;
    double downsample, small_first, small_second;
    double mean[3], std[3];
};

struct AugmentParams {  // drawn for one picture; 16 words, a row of an int32 tensor
    int32_t top, left, height, width;  // of the crop
    int32_t flip;
    int32_t small_side;  // the short side is brought to this and back before the crop; 0: is not
    int32_t grey;
    int32_t order;  // byte i says which comes i-th: 0 brightness, 1 contrast, 2 saturation, 3 hue
    float brightness, contrast, saturation;  // factors; 1: no change
    float hue;                               // turns, -0.5 .. 0.5
    float sigma;                             // of the blur in output pixels; 0: none
    int32_t unused[3];
};
static_assert(sizeof(AugmentParams) == 64);

struct Pictures {  // uint8 [height, width, 3] each
    const int64_t* table;  // [number][3] address, height, width; null: all alike and side by side from `first` on
    const uint8_t* first;
    int64_t number;
    int32_t height, width;  // with a table: the largest height and width in it
};

enum class AugmentOutput : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

constexpr int kMostBlurRadius = 24;  // sigma 8

// keys: [number][3] epoch, image, view, of each the low 32 bits count. params: [number].
void augment_draw(const Pictures& pictures, const AugmentSpec& spec, uint64_t seed, const int64_t* keys,
                  AugmentParams* params);

// out: [number, 3, S, S], or in memory [number, S, S, 3] with channels_last. Boxes must lie within their pictures.
void augment_apply(const Pictures& pictures, const AugmentSpec& spec, const AugmentParams* params, void* out,
                   AugmentOutput type, bool channels_last, int threads);

// The same on a CUDA device; queued on the stream, never waits, allocates nothing. Return a cudaError_t.
int augment_draw_cuda(const Pictures& pictures, const AugmentSpec& spec, uint64_t seed, const int64_t* keys,
                      AugmentParams* params, int device, void* stream);
int augment_apply_cuda(const Pictures& pictures, const AugmentSpec& spec, const AugmentParams* params, void* out,
                       AugmentOutput type, bool channels_last, void* scratch, int64_t scratch_bytes, int device,
                       void* stream);
// The scratch that holds `number` of these pictures at a time; augment_apply_cuda takes as many at once as fit.
int64_t augment_scratch_bytes(const Pictures& pictures, const AugmentSpec& spec, int64_t number);

}  // namespace stablerep

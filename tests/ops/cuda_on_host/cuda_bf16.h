// bfloat16 as in CUDA's header of this name.
#pragma once

#include "../../../csrc/floats.h"

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
    float buffer;
    return *stablerep::as_floats(stablerep::Dtype::bfloat16, &value, 0, 1, &buffer);
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    __nv_bfloat16 rounded;
    stablerep::store_floats(stablerep::Dtype::bfloat16, &value, 0, 1, &rounded);
    return rounded;
}

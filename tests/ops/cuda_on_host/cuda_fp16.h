// float16 as in CUDA's header of this name.
#pragma once

#include "../../../csrc/floats.h"

struct __half {
    uint16_t bits;
};

inline float __half2float(__half value) {
    float buffer;
    return *stablerep::as_floats(stablerep::Dtype::float16, &value, 0, 1, &buffer);
}

inline __half __float2half_rn(float value) {
    __half rounded;
    stablerep::store_floats(stablerep::Dtype::float16, &value, 0, 1, &rounded);
    return rounded;
}

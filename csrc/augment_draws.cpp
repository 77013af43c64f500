// Apart from augment.cpp, which may fuse multiply and add: what is drawn must be the same everywhere, bit for bit.
#include "augment_draws.h"

#include "augment_pixel.h"

namespace stablerep {

void augment_draw(const Pictures& pictures, const AugmentSpec& spec, uint64_t seed, const int64_t* keys,
                  AugmentParams* params) {
    for (int64_t i = 0; i < pictures.number; ++i) {
        const Picture picture = picture_of(pictures, i);
        params[i] = draw_params(spec, seed, keys + 3 * i, picture.height, picture.width);
    }
}

}  // namespace stablerep

// Part of network_lanes.h: convolutions of 3 x 3. Stride 1 is Winograd's F(4x4, 3x3) (Lavin and Gray 2015): a tile of
// 4 x 4 outputs takes 36 products a pair of channels instead of 144. What surrounds it is done while the numbers pass:
// group normalisation, SiLU and upsampling on the way in, bias and residual on the way out.

STABLEREP_INLINE void transform_in(const Vector* d, Vector* t) {
    const Vector a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1];
    const Vector c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
    t[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    t[1] = a + b;
    t[2] = a - b;
    t[3] = c + e;
    t[4] = c - e;
    t[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

STABLEREP_INLINE void transform_out(const Vector* m, Vector* y) {
    const Vector a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + a + c;
    y[1] = b + 2.0f * e;
    y[2] = a + 4.0f * c;
    y[3] = b + 8.0f * e + m[5];
}

// One picture's input as the tiles want it: a plane for each vector of channels, with zeros around.
template <bool with_norm, bool with_silu>
void fill_planes(const NetworkStep& step, const StepRows& rows, const float* x, const ConvShape& shape, float* planes) {
    const int64_t channels = step.in_channels;
    float* const scale = planes + channels * shape.plane;
    float* const shift = scale + channels;
    const int down = step.upsample ? 1 : 0, width = step.width >> down;
    if (with_norm) group_affine(step, x, rows.in_stride, rows.pixels, scale, shift);
    for (int64_t c = 0; c < channels; c += kLanes) {
        float* const plane = planes + c * shape.plane;
        const Vector factor = with_norm ? load(scale + c) : Vector{}, term = with_norm ? load(shift + c) : Vector{};
        for (int y = 0; y < step.height; ++y) {
            float* const line = plane + ((y + 1) * shape.padded_width + 1) * kLanes;
            const float* const from = x + int64_t(y >> down) * width * rows.in_stride + c;
            for (int i = 0; i < step.width; ++i) {
                Vector value = load(from + (i >> down) * rows.in_stride);
                if (with_norm) value = value * factor + term;
                store(line + i * kLanes, with_silu ? silu(value) : value);
            }
        }
    }
}

void fill(const NetworkStep& step, const StepRows& rows, const float* x, const ConvShape& shape, float* planes) {
    if (!step.groups) return fill_planes<false, false>(step, rows, x, shape, planes);
    (step.silu ? fill_planes<true, true> : fill_planes<true, false>)(step, rows, x, shape, planes);
}

void tile_in(const float* planes, const ConvShape& shape, int64_t channels, int64_t tile, float* out, int64_t apart) {
    const int64_t y = tile / shape.tiles_wide * 4, x = tile % shape.tiles_wide * 4;
    for (int64_t c = 0; c < channels; c += kLanes) {
        const float* const from = planes + c * shape.plane + (y * shape.padded_width + x) * kLanes;
        Vector half[kSide][kSide];
#pragma GCC unroll 6
        for (int i = 0; i < kSide; ++i) {
            Vector line[kSide];
#pragma GCC unroll 6
            for (int j = 0; j < kSide; ++j) line[j] = load(from + (i * shape.padded_width + j) * kLanes);
            transform_in(line, half[i]);
        }
#pragma GCC unroll 6
        for (int j = 0; j < kSide; ++j) {
            Vector line[kSide], t[kSide];
#pragma GCC unroll 6
            for (int i = 0; i < kSide; ++i) line[i] = half[i][j];
            transform_in(line, t);
#pragma GCC unroll 6
            for (int i = 0; i < kSide; ++i) store(out + (i * kSide + j) * apart + c, t[i]);
        }
    }
}

void tile_out(const NetworkStep& step, const StepRows& rows, const ConvShape& shape, int64_t row, int64_t tile,
              const float* in, int64_t apart) {
    const int64_t y0 = tile / shape.tiles_wide * 4, x0 = tile % shape.tiles_wide * 4;
    const int64_t first = (row * step.height + y0) * step.width + x0;
    const int64_t high = least(4, step.height - y0), wide = least(4, step.width - x0);
    for (int64_t c = 0; c < step.out_channels; c += kLanes) {
        Vector half[kSide][4];
#pragma GCC unroll 6
        for (int i = 0; i < kSide; ++i) {
            Vector line[kSide];
#pragma GCC unroll 6
            for (int j = 0; j < kSide; ++j) line[j] = load(in + (i * kSide + j) * apart + c);
            transform_out(line, half[i]);
        }
        const Vector bias = rows.bias ? load(rows.bias + c) : Vector{};
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            if (j >= wide) break;
            Vector line[kSide], result[4];
#pragma GCC unroll 6
            for (int i = 0; i < kSide; ++i) line[i] = half[i][j];
            transform_out(line, result);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                if (i >= high) break;
                const int64_t pixel = first + i * step.width + j;
                Vector value = result[i] + bias;
                if (rows.residual) value += load(rows.residual + pixel * rows.residual_stride + c);
                store(rows.out + pixel * rows.out_stride + c, value);
            }
        }
    }
}

void conv3x3(const NetworkStep& step, const StepRows& rows) {
    const ConvShape shape = conv_shape(step);
    const int64_t k = step.in_channels, n = step.out_channels, tiles = shape.tiles_high * shape.tiles_wide;
    float* const planes = rows.scratch;
    float* const in = planes + k * (shape.plane + 2);
    float* const out = in + kPositions * shape.in_apart;
    for (int64_t i = 0; i < k * shape.plane; ++i) planes[i] = 0;
    int64_t filled = -1;
    for (int64_t first = 0; first < rows.rows * tiles; first += kTiles) {
        const int64_t count = least(kTiles, rows.rows * tiles - first);
        for (int64_t t = 0; t < count; ++t) {
            const int64_t row = (first + t) / tiles;
            if (row != filled) fill(step, rows, rows.in + row * rows.pixels * rows.in_stride, shape, planes);
            filled = row;
            tile_in(planes, shape, k, (first + t) % tiles, in + t * k, shape.in_apart);
        }
        for (int position = 0; position < kPositions; ++position) {
            multiply({in + position * shape.in_apart, k, step.weights + position * k * n, 0,
                      out + position * shape.out_apart, n, count, k, n});
        }
        for (int64_t t = 0; t < count; ++t) {
            tile_out(step, rows, shape, (first + t) / tiles, (first + t) % tiles, out + t * n, shape.out_apart);
        }
    }
}

// The nine neighbours of an output pixel side by side, and one product.
void conv3x3_stride2(const NetworkStep& step, const StepRows& rows) {
    const int64_t channels = step.in_channels;
    const int64_t high = (step.height + 1) / 2, wide = (step.width + 1) / 2, outputs = rows.rows * high * wide;
    float* const patches = rows.scratch;
    for (int64_t first = 0; first < outputs; first += kTokens) {
        const int64_t count = least(kTokens, outputs - first);
        for (int64_t t = 0; t < count; ++t) {
            const int64_t pixel = (first + t) % (high * wide), row = (first + t) / (high * wide);
            for (int tap = 0; tap < 9; ++tap) {
                const int64_t y = pixel / wide * 2 + tap / 3 - 1, x = pixel % wide * 2 + tap % 3 - 1;
                const bool inside = y >= 0 && y < step.height && x >= 0 && x < step.width;
                const float* const from = rows.in + (row * rows.pixels + y * step.width + x) * rows.in_stride;
                float* const to = patches + (t * 9 + tap) * channels;
                for (int64_t c = 0; c < channels; c += kLanes) store(to + c, inside ? load(from + c) : Vector{});
            }
        }
        multiply({patches, 9 * channels, step.weights, 0, rows.out + first * rows.out_stride, rows.out_stride, count,
                  9 * channels, step.out_channels, rows.bias});
    }
}

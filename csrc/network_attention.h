// Part of network_lanes.h: attention of a picture's tokens to each other or to a text.

// Weights of `queries` rows [queries, keys rounded up to 16] from their scores, in place.
void softmax(float* scores, int64_t queries, int64_t keys, int64_t stride, float scale) {
    for (int64_t q = 0; q < queries; ++q) {
        float* const row = scores + q * stride;
        float most = row[0];
        for (int64_t k = 1; k < keys; ++k) most = row[k] > most ? row[k] : most;
        for (int64_t k = keys; k < stride; ++k) row[k] = -__builtin_inff();
        Vector sum{};
        for (int64_t k = 0; k < stride; k += kLanes) {
            const Vector weight = exponential((load(row + k) - most) * scale);  // 1e-35 where there is no key
            store(row + k, weight);
            sum += weight;
        }
        const float factor = 1 / sum_of(sum);
        for (int64_t k = 0; k < stride; k += kLanes) store(row + k, load(row + k) * factor);
    }
}

void attention(const NetworkStep& step, const StepRows& rows) {
    const int64_t tokens = rows.pixels, width = step.out_channels / step.heads;
    const int64_t keys = step.text < 0 ? tokens : step.keys, stride = rounded_up(keys);
    float* const scores = rows.scratch;
    float* const turned = scores + kQueries * stride;  // keys as columns
    if (step.text < 0) {
        for (int64_t i = 0; i < width * stride; ++i) turned[i] = 0;
    }
    for (int64_t row = 0; row < rows.rows; ++row) {
        for (int head = 0; head < step.heads; ++head) {
            const int64_t at = head * width;
            const float *key, *value;
            int64_t value_stride;
            if (step.text < 0) {
                const float* const from = rows.key + row * tokens * rows.in_stride + at;
                for (int64_t k = 0; k < tokens; ++k) {
                    for (int64_t c = 0; c < width; ++c) turned[c * stride + k] = from[k * rows.in_stride + c];
                }
                key = turned;
                value = rows.value + row * tokens * rows.in_stride + at;
                value_stride = rows.in_stride;
            } else {
                key = rows.key + (rows.text_rows[row] * step.heads + head) * width * stride;
                value = rows.value + rows.text_rows[row] * keys * step.out_channels + at;
                value_stride = step.out_channels;
            }
            for (int64_t first = 0; first < tokens; first += kQueries) {
                const int64_t m = least(kQueries, tokens - first), token = row * tokens + first;
                multiply({rows.in + token * rows.in_stride + at, rows.in_stride, key, stride, scores, stride, m, width,
                          stride});
                softmax(scores, m, keys, stride, step.scale);
                multiply({scores, stride, value, value_stride, rows.out + token * rows.out_stride + at, rows.out_stride,
                          m, keys, width});
            }
        }
    }
}

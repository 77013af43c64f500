#include "to_pixels.h"

#include <algorithm>
#include <vector>

#include "resample.h"
#include "vector_clones.h"

namespace stablerep {
namespace {

constexpr int kRowsPerTask = 16;
constexpr int64_t kPixelsToShare = 1 << 15;  // below, waking the threads takes longer than the work

// The windows of all columns of the crop, tap by tap, so that neighbouring columns are neighbours in memory.
struct Columns {
    int taps, begin, end;        // widest window; source columns begin .. end - 1 are all that the crop needs
    std::vector<int> count;      // [out_width]
    std::vector<int> index;      // [taps, out_width] from begin on, valid also where a window has fewer taps
    std::vector<float> weights;  // [taps, out_width]
};

Columns make_columns(const ToPixels& call) {
    const ResampledAxis axis = make_axis(call.width, call.resized_width);
    const int n = call.out_width;
    const int stride = call.channels_last ? 3 : 1;
    Columns columns;
    columns.begin = window_of(axis, call.left).first;
    columns.taps = columns.end = 0;
    columns.count.resize(n);
    for (int x = 0; x < n; ++x) {
        const Window window = window_of(axis, call.left + x);
        columns.count[x] = window.count;
        columns.taps = std::max(columns.taps, window.count);
        columns.end = std::max(columns.end, window.first + window.count);
    }
    columns.index.resize(size_t(columns.taps) * n);
    columns.weights.resize(size_t(columns.taps) * n);
    for (int x = 0; x < n; ++x) {
        const Window window = window_of(axis, call.left + x);
        fill_weights(axis, window, &columns.weights[x], n);
        for (int k = 0; k < columns.taps; ++k) {
            const int column = window.first + std::min(k, window.count - 1);
            columns.index[size_t(k) * n + x] = (column - columns.begin) * stride;
        }
    }
    return columns;
}

STABLEREP_VECTOR_CLONES
void add_row(float weight, bool is_first, const float* __restrict row, int64_t n, float* __restrict sum) {
    if (is_first) {
        for (int64_t i = 0; i < n; ++i) sum[i] = weight * row[i];
    } else {
        for (int64_t i = 0; i < n; ++i) sum[i] += weight * row[i];
    }
}

// line[x] <- sum over k of weights[k, x] row[index[k, x]]
STABLEREP_VECTOR_CLONES
void resample_row(const float* __restrict row, const int* __restrict index, const float* __restrict weights,
                  const int* __restrict count, int taps, int n, float* __restrict line) {
    for (int x = 0; x < n; ++x) line[x] = 0.0f;
    for (int k = 0; k < taps; ++k) {
        const int* const at = index + int64_t(k) * n;
        const float* const weight = weights + int64_t(k) * n;
        for (int x = 0; x < n; ++x) {
            const float term = weight[x] * row[at[x]];
            line[x] += k < count[x] ? term : 0.0f;  // not 0 * infinity
        }
    }
}

STABLEREP_VECTOR_CLONES
void grey_run(const float* __restrict values, int64_t n, uint8_t* __restrict out) {
    for (int64_t i = 0; i < n; ++i) out[i] = grey_level(values[i]);
}

STABLEREP_VECTOR_CLONES
void interleave(const uint8_t* __restrict red, const uint8_t* __restrict green, const uint8_t* __restrict blue, int n,
                uint8_t* __restrict out) {
    for (int x = 0; x < n; ++x) {
        out[3 * x + 0] = red[x];
        out[3 * x + 1] = green[x];
        out[3 * x + 2] = blue[x];
    }
}

// Working memory of one thread.
struct Scratch {
    std::vector<float> row, sum, line, row_weights;
    std::vector<uint8_t> grey;

    explicit Scratch(const ToPixels& call, int most_row_taps)
        : row(3 * call.width), sum(3 * call.width), line(3 * call.out_width), row_weights(most_row_taps),
          grey(3 * call.out_width) {}
};

// Source numbers [begin, begin + n) of a row; where channels are last `channel` is 0 and n counts all three.
const float* source(const ToPixels& call, int64_t picture, int channel, int row, int begin, int64_t n, float* buffer) {
    const int64_t start = call.channels_last ? ((picture * call.height + row) * call.width + begin) * 3
                                             : ((picture * 3 + channel) * call.height + row) * call.width + begin;
    return as_floats(call.dtype, call.images, start, n, buffer);
}

void resized_row(const ToPixels& call, const ResampledAxis& rows, const Columns& columns, int64_t picture, int y,
                 Scratch& scratch, uint8_t* out) {
    const Window window = window_of(rows, call.top + y);
    fill_weights(rows, window, scratch.row_weights.data(), 1);
    const int planes = call.channels_last ? 1 : 3;
    const int64_t n = int64_t(columns.end - columns.begin) * (call.channels_last ? 3 : 1);
    for (int plane = 0; plane < planes; ++plane) {
        for (int k = 0; k < window.count; ++k) {
            add_row(scratch.row_weights[k], k == 0,
                    source(call, picture, plane, window.first + k, columns.begin, n, scratch.row.data()), n,
                    &scratch.sum[plane * n]);
        }
    }
    const int width = call.out_width;
    for (int channel = 0; channel < 3; ++channel) {
        resample_row(&scratch.sum[call.channels_last ? channel : channel * n], columns.index.data(),
                     columns.weights.data(), columns.count.data(), columns.taps, width, &scratch.line[channel * width]);
    }
    grey_run(scratch.line.data(), 3 * width, scratch.grey.data());
    interleave(&scratch.grey[0], &scratch.grey[width], &scratch.grey[2 * width], width, out);
}

void plain_row(const ToPixels& call, int64_t picture, int y, Scratch& scratch, uint8_t* out) {
    const int row = call.top + y, width = call.out_width;
    if (call.channels_last) {
        grey_run(source(call, picture, 0, row, call.left, 3 * width, scratch.row.data()), 3 * width, out);
        return;
    }
    for (int channel = 0; channel < 3; ++channel) {
        grey_run(source(call, picture, channel, row, call.left, width, scratch.row.data()), width,
                 &scratch.grey[channel * width]);
    }
    interleave(&scratch.grey[0], &scratch.grey[width], &scratch.grey[2 * width], width, out);
}

// Where each picture goes; -1: nowhere.
std::vector<int64_t> destinations(const ToPixels& call) {
    std::vector<int64_t> slots(call.pictures);
    std::vector<int64_t> writer(call.slots ? call.pool : 0, -1);
    for (int64_t b = 0; b < call.pictures; ++b) {
        slots[b] = !call.slots ? b : call.slots[b] >= 0 && call.slots[b] < call.pool ? call.slots[b] : -1;
        if (call.slots && slots[b] >= 0) writer[slots[b]] = b;
    }
    for (int64_t b = 0; call.slots && b < call.pictures; ++b) {
        if (slots[b] >= 0 && writer[slots[b]] != b) slots[b] = -1;
    }
    return slots;
}

}  // namespace

void to_pixels(const ToPixels& call, [[maybe_unused]] int threads) {
    const bool resize = call.resized_height != call.height || call.resized_width != call.width;
    const ResampledAxis rows = make_axis(call.height, call.resized_height);
    const Columns columns = resize ? make_columns(call) : Columns{};
    const std::vector<int64_t> slots = destinations(call);
    const int64_t tasks_per_picture = (call.out_height + kRowsPerTask - 1) / kRowsPerTask;
    const int64_t tasks = call.pictures * tasks_per_picture;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (call.pictures * call.height * call.width >= kPixelsToShare)
#endif
    {
        Scratch scratch(call, widest_window(rows));
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (int64_t task = 0; task < tasks; ++task) {
            const int64_t picture = task / tasks_per_picture;
            if (slots[picture] < 0) continue;
            const int first = int(task % tasks_per_picture) * kRowsPerTask;
            for (int y = first; y < std::min(first + kRowsPerTask, call.out_height); ++y) {
                uint8_t* const out = call.out + (slots[picture] * call.out_height + y) * call.out_width * 3;
                if (resize) {
                    resized_row(call, rows, columns, picture, y, scratch, out);
                } else {
                    plain_row(call, picture, y, scratch, out);
                }
            }
        }
    }
}

}  // namespace stablerep

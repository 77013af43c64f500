#include "augment.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

#include "augment_pixel.h"
#include "augment_rows.h"

namespace stablerep {
namespace {

constexpr int kLane = rows::kLane;

int64_t rounded_up(int64_t n) { return (n + kLane - 1) / kLane * kLane; }

// Memory that grows, keeps its place between pictures and is not cleared.
template <typename T>
class Buffer {
   public:
    T* at_least(int64_t n) {
        if (n > size_) {
            data_.reset();
            data_.reset(static_cast<T*>(::operator new(std::size_t(n) * sizeof(T), std::align_val_t{64})));
            size_ = n;
        }
        return data_.get();
    }
    T* data() const { return data_.get(); }

   private:
    struct Free {
        void operator()(T* p) const { ::operator delete(p, std::align_val_t{64}); }
    };
    std::unique_ptr<T, Free> data_;
    int64_t size_ = 0;
};

struct Output {
    void* data;  // [number, 3, S, S] or [number, S, S, 3]
    AugmentOutput type;
    bool channels_last;
    float factor[3], offset[3];
};

// One picture at a time; what it holds for 256 x 256 to 224 x 224, 0.7 MB, lies in the second-level cache.
class Augmenter {
   public:
    Augmenter(const AugmentSpec& spec, const Output& output)
        : output_(output), size_(int32_t(spec.image_size)), stride_(int32_t(rounded_up(size_))) {}

    void run(const Picture& picture, const AugmentParams& params, int64_t number) {
        p_ = params;
        plan_columns(picture);
        plan_rows(picture);
        if (p_.sigma > 0) plan_blur();
        // Contrast needs the mean of the whole picture: what comes before it is done on the way, the rest after.
        int before = 0;
        while (before < 4 && !(operation(before) == 1 && p_.contrast != 1)) ++before;
        const bool needs_mean = before < 4;
        float* const pixels = needs_mean ? pixels_.at_least(int64_t{3} * stride_ * size_) : row_.at_least(3 * stride_);
        double grey = 0;
        for (int32_t y = 0; y < size_; ++y) {
            float* const row = needs_mean ? pixels + int64_t{3} * stride_ * y : pixels;
            resize_row(picture, y, row);
            for (int i = 0; i < before; ++i) change(row, operation(i), 0);
            if (needs_mean) {
                grey += rows::sum_of_grey(row, stride_);
            } else {
                finish(row, y, number);
            }
        }
        if (!needs_mean) return;
        const auto mean = float(grey / (double(size_) * size_));
        for (int32_t y = 0; y < size_; ++y) {
            float* const row = pixels + int64_t{3} * stride_ * y;
            for (int i = before; i < 4; ++i) change(row, operation(i), mean);
            finish(row, y, number);
        }
    }

   private:
    int operation(int i) const { return (p_.order >> (8 * i)) & 0xFF; }

    void plan_columns(const Picture& picture) {
        const Axis axis = axis_of(p_, picture, size_, false);
        int32_t* const first = first_.at_least(stride_);
        int32_t* const base = base_.at_least(stride_ / kLane);
        left_ = picture.width, right_ = 0, columns_.taps = 0;
        for (int32_t x = 0; x < size_; ++x) {
            const Span span = span_of(axis, x);
            first[x] = span.first;
            left_ = std::min(left_, span.first);
            right_ = std::max(right_, span.first + span.count);
            columns_.taps = std::max(columns_.taps, span.count);
        }
        float* const weights = column_weights_.at_least(int64_t{columns_.taps} * stride_);
        std::fill_n(weights, int64_t{columns_.taps} * stride_, 0.0f);
        for (int32_t x = 0; x < size_; ++x) {
            weights_of(axis, x, span_of(axis, x), weights + x, stride_);
            first[x] -= left_;
        }
        std::fill(first + size_, first + stride_, first[size_ - 1]);
        bool near = true;
        for (int32_t x = 0; x < stride_; x += kLane) {
            const auto [least, most] = std::minmax_element(first + x, first + x + kLane);
            base[x / kLane] = *least;
            near &= *most - *least + columns_.taps <= 2 * kLane;
        }
        columns_.first = first, columns_.base = near ? base : nullptr;
        columns_.weights = weights, columns_.stride = stride_;
        // Taps of weight 0 and whole registers read past the last column: there must be numbers.
        const int64_t length = rounded_up(right_ - left_ + columns_.taps + 2 * kLane);
        mixed_.at_least(3 * (right_ - left_));
        float* const split = split_.at_least(3 * length);
        for (int c = 0; c < 3; ++c) {
            channel_[c] = split + c * length;
            std::fill(channel_[c] + (right_ - left_), channel_[c] + length, 0.0f);
        }
    }

    void plan_rows(const Picture& picture) {
        const Axis axis = axis_of(p_, picture, size_, true);
        Span* const spans = spans_.at_least(size_);
        int64_t total = 0;
        for (int32_t y = 0; y < size_; ++y) {
            spans[y] = span_of(axis, y);
            total += spans[y].count;
        }
        float* weights = row_weights_.at_least(total);
        for (int32_t y = 0; y < size_; weights += spans[y].count, ++y) {
            weights_of(axis, y, spans[y], weights, 1);
            for (int32_t k = 0; k < spans[y].count; ++k) weights[k] *= 1.0f / 255.0f;
        }
        next_weights_ = row_weights_.data();
    }

    void plan_blur() {
        radius_ = blur_radius(p_.sigma);
        blur_weights(p_.sigma, radius_, blur_weights_);
        kept_rows_ = std::min(2 * radius_ + 1, size_);
        across_.at_least(int64_t{3} * stride_ * kept_rows_);
        padded_.at_least(stride_ + 2 * radius_ + 2 * kLane);
        blurred_.at_least(3 * stride_);
    }

    // Rows come in order, 0 first.
    void resize_row(const Picture& picture, int32_t y, float* row) {
        const Span span = spans_.data()[y];
        const int64_t pitch = int64_t{3} * picture.width;
        const uint8_t* const bytes = picture.pixels + span.first * pitch + int64_t{3} * left_;
        const int32_t width = right_ - left_;
        float* const mixed = mixed_.data();
        rows::mix(bytes, pitch, next_weights_, span.count, 3 * width, mixed);
        next_weights_ += span.count;
        rows::split(mixed, width, channel_[0], channel_[1], channel_[2]);
        rows::resample(channel_, columns_, row);
    }

    void change(float* row, int operation, float mean) const {
        if (operation == 0 && p_.brightness != 1) rows::brighten(row, stride_, p_.brightness);
        if (operation == 1 && p_.contrast != 1) rows::add_contrast(row, stride_, p_.contrast, mean);
        if (operation == 2 && p_.saturation != 1) rows::saturate(row, stride_, p_.saturation);
        if (operation == 3 && p_.hue != 0) rows::turn_hue(row, stride_, p_.hue);
    }

    // Grey, blur and output of a row; with blur the output lags behind.
    void finish(float* row, int32_t y, int64_t number) {
        if (p_.grey) rows::make_grey(row, stride_);
        if (!(p_.sigma > 0)) return store(row, y, number);
        float* const across = across_.data();
        const auto kept = [&](int32_t i) { return across + int64_t{3} * stride_ * (i % kept_rows_); };
        rows::blur_across(row, stride_, size_, blur_weights_, radius_, padded_.data(), kept(y));
        const int32_t ready = y == size_ - 1 ? size_ : y - radius_ + 1;  // below this every row it needs has come
        for (int32_t done = std::max(y - radius_, 0); done < ready; ++done) {
            const float* in[2 * kMostBlurRadius + 1];
            for (int32_t d = -radius_; d <= radius_; ++d) in[radius_ + d] = kept(reflected(done + d, size_));
            rows::blur_down(in, stride_, blur_weights_, radius_, blurred_.data());
            store(blurred_.data(), done, number);
        }
    }

    void store(const float* row, int32_t y, int64_t number) const {
        const int64_t plane = int64_t{size_} * size_;
        const int64_t at = number * 3 * plane + int64_t{y} * size_ * (output_.channels_last ? 3 : 1);
        const int64_t width = output_.type == AugmentOutput::kFloat32 ? 4 : 2;
        rows::store(row, stride_, size_, output_.factor, output_.offset, output_.type,
                    output_.channels_last ? 0 : plane, static_cast<uint8_t*>(output_.data) + at * width);
    }

    const Output output_;
    const int32_t size_, stride_;
    AugmentParams p_{};
    rows::Columns columns_{};
    int32_t left_ = 0, right_ = 0, radius_ = 0, kept_rows_ = 0;
    float* channel_[3]{};
    const float* next_weights_ = nullptr;
    float blur_weights_[kMostBlurRadius + 1]{};
    Buffer<int32_t> first_, base_;
    Buffer<Span> spans_;
    Buffer<float> column_weights_, row_weights_, mixed_, split_, row_, pixels_, across_, padded_, blurred_;
};

}  // namespace

void augment_apply(const Pictures& pictures, const AugmentSpec& spec, const AugmentParams* params, void* out,
                   AugmentOutput type, bool channels_last, [[maybe_unused]] int threads) {
    Output output{out, type, channels_last, {}, {}};
    for (int c = 0; c < 3; ++c) {
        output.factor[c] = float(1 / spec.std[c]);
        output.offset[c] = float(-spec.mean[c] / spec.std[c]);
    }
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (pictures.number > 1)
#endif
    {
        Augmenter augmenter(spec, output);
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t i = 0; i < pictures.number; ++i) augmenter.run(picture_of(pictures, i), params[i], i);
    }
}

}  // namespace stablerep

// Random cases: each op's CUDA half, run by launch.cpp, against its host half. Every array ends where its allocation
// ends. Usage: cases OP SEED NUMBER
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../../../csrc/augment.h"
#include "../../../csrc/guided_step.h"
#include "../../../csrc/noise.h"
#include "../../../csrc/to_pixels.h"

namespace {

using namespace stablerep;

std::mt19937_64 numbers;

int64_t from(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(numbers); }
double between(double low, double high) { return std::uniform_real_distribution<double>(low, high)(numbers); }
bool coin() { return from(0, 1) != 0; }

template <typename T>
T one_of(std::initializer_list<T> all) {
    return all.begin()[from(0, int64_t(all.size()) - 1)];
}

int64_t odd_size(int64_t most) { return std::min(most, one_of<int64_t>({1, 3, 31, 32, 33, 63, 64, 127, from(1, most)})); }

#define CHECK(condition, ...)                                          \
    if (!(condition)) {                                                \
        std::fprintf(stderr, "%s:%d: " #condition ": ", __FILE__, __LINE__); \
        std::fprintf(stderr, __VA_ARGS__);                             \
        std::fprintf(stderr, "\n");                                    \
        std::exit(1);                                                  \
    }

// n numbers of a dtype that begin `skipped` numbers after an address that CUDA's allocator would give.
class Array {
   public:
    Array(Dtype dtype, int64_t n, int64_t skipped = 0)
        : dtype_(dtype), n_(n), width_(dtype == Dtype::float32 ? 4 : 2), bytes_(size_t((n + skipped) * width_), 0xFF),
          skipped_(size_t(skipped * width_)) {}
    void fill(double low, double high) {
        std::vector<float> values(size_t(n_), 0.0f);
        for (float& value : values) value = float(between(low, high));
        if (n_ > 0) store_floats(dtype_, values.data(), 0, n_, data());
    }
    void* data() { return bytes_.data() + skipped_; }
    std::vector<float> floats() {
        std::vector<float> values(size_t(n_), 0.0f);
        if (n_ == 0) return values;
        const float* found = as_floats(dtype_, data(), 0, n_, values.data());
        return {found, found + n_};
    }

   private:
    Dtype dtype_;
    int64_t n_, width_;
    std::vector<uint8_t> bytes_;
    size_t skipped_;
};

void check_same(const char* what, Array& one, Array& other, double tolerance = 0) {
    const std::vector<float> a = one.floats(), b = other.floats();
    for (size_t i = 0; i < a.size(); ++i) {
        const bool same = (std::isnan(a[i]) && std::isnan(b[i])) || std::abs(double(a[i]) - double(b[i])) <= tolerance;
        CHECK(same, "%s differs at %zu of %zu: %g and %g", what, i, a.size(), double(a[i]), double(b[i]));
    }
}

void noise_case() {
    const int64_t images = from(0, 5), elements = odd_size(3000), skipped = from(0, 3);
    std::vector<int64_t> prompts(size_t(images), 0), indices(size_t(images), 0);
    for (auto& id : prompts) id = from(0, int64_t{1} << 62);
    for (auto& index : indices) index = from(0, int64_t{1} << 32);
    const auto seed = uint64_t(numbers());
    Array expected(Dtype::float32, images * elements), actual(Dtype::float32, images * elements, skipped);
    philox_normal(seed, prompts.data(), indices.data(), images, elements, static_cast<float*>(expected.data()), 1);
    CHECK(philox_normal_cuda(seed, prompts.data(), indices.data(), images, elements, static_cast<float*>(actual.data()), 0,
                             nullptr) == 0, "refused");
    check_same("noise", actual, expected);
}

void guided_step_case() {
    const Dtype latents_dtype = one_of({Dtype::float32, Dtype::bfloat16, Dtype::float16});
    const Dtype output_dtype =
        latents_dtype == Dtype::float32 ? one_of({Dtype::float32, Dtype::bfloat16, Dtype::float16}) : latents_dtype;
    const int64_t pictures = from(0, 4), elements = odd_size(2000), steps = from(1, 3);
    const bool guided = coin(), per_picture = coin();
    const int64_t skipped = coin() ? 0 : from(1, 3), n = pictures * elements;
    Array latents(latents_dtype, n, skipped), output(output_dtype, (guided ? 2 : 1) * n, skipped);
    latents.fill(-4, 4), output.fill(-4, 4);
    std::vector<float> table(size_t(5 * steps), 0.0f), scales(size_t(guided ? (per_picture ? pictures : 1) : 0), 0.0f);
    for (float& value : table) value = float(between(-2, 2));
    for (float& value : scales) value = float(between(0, 8));
    std::vector<int64_t> step{from(-1, steps)};
    const bool inside = step[0] >= 0 && step[0] < steps;
    if (inside && coin()) table[size_t(5 * step[0] + 4)] = 0.0f;
    const bool reads_before = !inside || table[size_t(5 * step[0] + 4)] != 0.0f;
    Array before(latents_dtype, reads_before ? n : 0, skipped);  // else nobody may read it
    before.fill(-4, 4);
    Array next(latents_dtype, n, skipped), x0(latents_dtype, n, skipped);
    Array expected_next(latents_dtype, n), expected_x0(latents_dtype, n);
    GuidedStep call{.latents = latents.data(), .output = output.data(), .previous_x0 = before.data(), .table = table.data(),
                    .step = step.data(), .guidance_scale = scales.data(), .next = expected_next.data(),
                    .x0 = expected_x0.data(), .pictures = pictures, .elements = elements, .steps = steps,
                    .guided = guided, .scale_per_picture = per_picture, .latents_dtype = latents_dtype,
                    .output_dtype = output_dtype};
    guided_step(call, 1);
    call.next = next.data(), call.x0 = x0.data();
    CHECK(guided_step_cuda(call, 0, nullptr) == 0, "refused");
    check_same("next", next, expected_next);
    check_same("x0", x0, expected_x0);
}

void to_pixels_case() {
    const Dtype dtype = one_of({Dtype::float32, Dtype::bfloat16, Dtype::float16});
    const int64_t pictures = from(0, 4);
    const auto height = int(odd_size(90)), width = int(odd_size(90));
    ToPixels call{.pictures = pictures, .height = height, .width = width, .resized_height = height,
                  .resized_width = width, .out_height = height, .out_width = width, .channels_last = coin(), .dtype = dtype};
    if (coin()) {  // as to_pixels.geometry has it
        const auto size = int(from((std::min(height, width) + 63) / 64, 80));
        const double scale = double(size) / std::min(height, width);
        call.resized_height = std::max(size, int(std::nearbyint(height * scale)));
        call.resized_width = std::max(size, int(std::nearbyint(width * scale)));
        call.top = (call.resized_height - size) / 2, call.left = (call.resized_width - size) / 2;
        call.out_height = call.out_width = size;
    }
    Array images(dtype, pictures * 3 * height * width);
    images.fill(-1.2, 1.2);
    const bool pooled = coin();
    call.pool = pooled ? from(0, 4) : pictures;
    std::vector<int64_t> slots(size_t(pictures), 0);
    for (auto& slot : slots) slot = from(-1, call.pool);
    const auto bytes = size_t(call.pool) * size_t(call.out_height) * size_t(call.out_width) * 3;
    std::vector<uint8_t> expected(bytes, 77), actual(bytes, 77);
    call.images = images.data(), call.slots = pooled ? slots.data() : nullptr, call.out = expected.data();
    to_pixels(call, 1);
    call.out = actual.data();
    CHECK(to_pixels_cuda(call, 0, nullptr) == 0, "refused");
    int64_t different = 0;
    for (size_t i = 0; i < bytes; ++i) {
        const int by = std::abs(int(expected[i]) - int(actual[i]));
        CHECK(by <= 1, "level %zu of %zu is %d, not %d", i, bytes, actual[i], expected[i]);
        different += by;
    }
    CHECK(different <= 1 + int64_t(bytes) / 1000, "%lld of %zu levels differ", static_cast<long long>(different), bytes);
}

AugmentSpec random_spec() {
    AugmentSpec spec{};
    spec.image_size = double(odd_size(70));
    spec.scale_low = between(0.05, 1), spec.scale_high = between(spec.scale_low, 1);
    spec.ratio_low = between(0.3, 1), spec.ratio_high = between(spec.ratio_low, 3);
    spec.log_ratio_low = std::log(spec.ratio_low), spec.log_ratio_high = std::log(spec.ratio_high);
    spec.flip = between(0, 1), spec.jitter = one_of({0.0, 0.8, 1.0});
    spec.brightness = spec.contrast = spec.saturation = between(0, 1.2), spec.hue = between(0, 0.5);
    spec.grey = 0.2, spec.blur = one_of({0.0, 0.5, 1.0}), spec.sigma_low = 0.1;
    spec.sigma_high = one_of({0.4, 2.0, 8.0});
    spec.downsample = one_of({0.0, 0.5, 1.0});
    spec.small_first = double(from(1, 40)), spec.small_second = double(from(1, 40));
    for (int c = 0; c < 3; ++c) spec.mean[c] = between(0, 1), spec.std[c] = between(0.5, 1);
    return spec;
}

void augment_case() {
    const AugmentSpec spec = random_spec();
    const int64_t number = from(1, 4), size = int64_t(spec.image_size);
    const bool ragged = coin();
    std::vector<std::vector<uint8_t>> stored;
    std::vector<int64_t> table, keys;
    Pictures pictures{.number = number};
    const int64_t height = odd_size(130), width = odd_size(130);
    for (int64_t i = 0; i < number; ++i) {
        const int64_t h = ragged ? odd_size(130) : height, w = ragged ? odd_size(130) : width;
        if (ragged || i == 0) stored.emplace_back(size_t((ragged ? 1 : number) * h * w * 3));
        table.insert(table.end(), {int64_t(reinterpret_cast<uintptr_t>(stored.back().data())), h, w});
        keys.insert(keys.end(), {from(0, 9), from(0, 1 << 20), from(0, 5)});
        pictures.height = std::max(pictures.height, int32_t(h)), pictures.width = std::max(pictures.width, int32_t(w));
    }
    for (auto& picture : stored) {
        for (auto& level : picture) level = uint8_t(from(0, 255));
    }
    table.shrink_to_fit(), keys.shrink_to_fit();
    (ragged ? pictures.table = table.data() : nullptr);
    if (!ragged) pictures.first = stored[0].data();
    const auto seed = uint64_t(numbers());
    std::vector<AugmentParams> params(size_t(number), AugmentParams{}), drawn(size_t(number), AugmentParams{});
    augment_draw(pictures, spec, seed, keys.data(), params.data());
    CHECK(augment_draw_cuda(pictures, spec, seed, keys.data(), drawn.data(), 0, nullptr) == 0, "refused");
    CHECK(std::memcmp(params.data(), drawn.data(), sizeof(AugmentParams) * params.size()) == 0, "other draws");

    const auto type = one_of({AugmentOutput::kFloat32, AugmentOutput::kBfloat16, AugmentOutput::kFloat16});
    const bool channels_last = coin();
    Array expected(Dtype{int(type)}, number * 3 * size * size), actual(Dtype{int(type)}, number * 3 * size * size);
    augment_apply(pictures, spec, params.data(), expected.data(), type, channels_last, 1);
    const int64_t scratch_bytes = augment_scratch_bytes(pictures, spec, from(1, number));
    std::vector<uint8_t> scratch(size_t(scratch_bytes), 0xFF);
    CHECK(augment_apply_cuda(pictures, spec, params.data(), actual.data(), type, channels_last, scratch.data(),
                             scratch_bytes, 0, nullptr) == 0, "refused");
    // Colours 0 .. 1 less a mean, over at least 0.5: up to 2, whose last bits bfloat16 and float16 have here.
    const double step[] = {0, 1.0 / 128, 1.0 / 1024};
    check_same("pictures", actual, expected, 1e-4 + step[int(type)]);
}

}  // namespace

int main(int count, char** arguments) {
    const std::string op = count > 1 ? arguments[1] : "";
    const auto run = op == "philox_normal" ? noise_case : op == "guided_step" ? guided_step_case
                     : op == "to_pixels"   ? to_pixels_case : op == "strong_augment" ? augment_case : nullptr;
    if (run == nullptr || count != 4) return std::fprintf(stderr, "cases OP SEED NUMBER\n"), 2;
    const long long first = std::atoll(arguments[2]), number = std::atoll(arguments[3]);
    for (long long seed = first; seed < first + number; ++seed) {
        numbers.seed(uint64_t(seed));
        std::fprintf(stderr, "seed %lld\r", seed);
        run();
    }
    return 0;
}

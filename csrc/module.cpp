// Python bindings of stablerep._native, and nothing else. Addresses come as integers from torch's data_ptr(): the
// module is built without libtorch and fits any version of it. Callers check shapes, dtypes and devices.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <bit>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "augment.h"
#include "cuda_device.h"
#include "guided_step.h"
#include "noise.h"
#include "to_pixels.h"

namespace py = pybind11;
using namespace py::literals;

void bind_network(py::module_& m);  // network_bindings.cpp

namespace {

template <typename T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void philox_normal(uint64_t seed, std::uintptr_t prompt_ids, std::uintptr_t indices, int64_t images, int64_t elements,
                   std::uintptr_t out, int threads) {
    const py::gil_scoped_release release;
    stablerep::philox_normal(seed, at<const int64_t>(prompt_ids), at<const int64_t>(indices), images, elements,
                             at<float>(out), threads);
}

// Pictures as one block or, with a table, each by its address: see augment.h.
stablerep::Pictures pictures_at(std::uintptr_t table, std::uintptr_t first, int64_t number, int32_t height,
                                int32_t width) {
    return {at<const int64_t>(table), at<const uint8_t>(first), number, height, width};
}

using SpecNumbers = std::array<double, sizeof(stablerep::AugmentSpec) / sizeof(double)>;

void augment_draw(const stablerep::Pictures& pictures, const SpecNumbers& spec, uint64_t seed, std::uintptr_t keys,
                  std::uintptr_t params) {
    const py::gil_scoped_release release;
    stablerep::augment_draw(pictures, std::bit_cast<stablerep::AugmentSpec>(spec), seed, at<const int64_t>(keys),
                            at<stablerep::AugmentParams>(params));
}

void augment_apply(const stablerep::Pictures& pictures, const SpecNumbers& spec, std::uintptr_t params,
                   std::uintptr_t out, int32_t type, bool channels_last, int threads) {
    const py::gil_scoped_release release;
    stablerep::augment_apply(pictures, std::bit_cast<stablerep::AugmentSpec>(spec),
                             at<const stablerep::AugmentParams>(params), at<void>(out), stablerep::AugmentOutput{type},
                             channels_last, threads);
}

stablerep::GuidedStep guided_step_call(std::uintptr_t latents, std::uintptr_t output, std::uintptr_t previous_x0,
                                       std::uintptr_t table, std::uintptr_t step, std::uintptr_t guidance_scale,
                                       std::uintptr_t next, std::uintptr_t x0, int64_t pictures, int64_t elements,
                                       int64_t steps, bool guided, bool scale_per_picture, int latents_dtype,
                                       int output_dtype) {
    return {.latents = at<const void>(latents),
            .output = at<const void>(output),
            .previous_x0 = at<const void>(previous_x0),
            .table = at<const float>(table),
            .step = at<const int64_t>(step),
            .guidance_scale = at<const float>(guidance_scale),
            .next = at<void>(next),
            .x0 = at<void>(x0),
            .pictures = pictures,
            .elements = elements,
            .steps = steps,
            .guided = guided,
            .scale_per_picture = scale_per_picture,
            .latents_dtype = stablerep::Dtype{latents_dtype},
            .output_dtype = stablerep::Dtype{output_dtype}};
}

void guided_step(const stablerep::GuidedStep& call, int threads) {
    const py::gil_scoped_release release;
    stablerep::guided_step(call, threads);
}

stablerep::ToPixels to_pixels_call(std::uintptr_t images, std::uintptr_t out, std::uintptr_t slots, int64_t pictures,
                                   int64_t pool, std::array<int, 2> size, std::array<int, 4> resized_and_corner,
                                   std::array<int, 2> out_size, bool channels_last, int dtype) {
    return {.images = at<const void>(images),
            .out = at<uint8_t>(out),
            .slots = at<const int64_t>(slots),
            .pictures = pictures,
            .pool = pool,
            .height = size[0],
            .width = size[1],
            .resized_height = resized_and_corner[0],
            .resized_width = resized_and_corner[1],
            .top = resized_and_corner[2],
            .left = resized_and_corner[3],
            .out_height = out_size[0],
            .out_width = out_size[1],
            .channels_last = channels_last,
            .dtype = stablerep::Dtype{dtype}};
}

void to_pixels(const stablerep::ToPixels& call, int threads) {
    const py::gil_scoped_release release;
    stablerep::to_pixels(call, threads);
}

#ifdef STABLEREP_CUDA
void check_cuda(const char* what, int error) {
    if (error != 0) throw std::runtime_error(std::string(what) + ": CUDA error: " + stablerep::cuda_error_text(error));
}

void philox_normal_cuda(uint64_t seed, std::uintptr_t prompt_ids, std::uintptr_t indices, int64_t images,
                        int64_t elements, std::uintptr_t out, int device, std::uintptr_t stream) {
    check_cuda("philox_normal", stablerep::philox_normal_cuda(seed, at<const int64_t>(prompt_ids),
                                                              at<const int64_t>(indices), images, elements,
                                                              at<float>(out), device, at<void>(stream)));
}

void augment_draw_cuda(const stablerep::Pictures& pictures, const SpecNumbers& spec, uint64_t seed,
                       std::uintptr_t keys, std::uintptr_t params, int device, std::uintptr_t stream) {
    check_cuda("strong_augment", stablerep::augment_draw_cuda(pictures, std::bit_cast<stablerep::AugmentSpec>(spec),
                                                              seed, at<const int64_t>(keys),
                                                              at<stablerep::AugmentParams>(params), device,
                                                              at<void>(stream)));
}

void augment_apply_cuda(const stablerep::Pictures& pictures, const SpecNumbers& spec, std::uintptr_t params,
                        std::uintptr_t out, int32_t type, bool channels_last, std::uintptr_t scratch,
                        int64_t scratch_bytes, int device, std::uintptr_t stream) {
    check_cuda("strong_augment",
               stablerep::augment_apply_cuda(pictures, std::bit_cast<stablerep::AugmentSpec>(spec),
                                             at<const stablerep::AugmentParams>(params), at<void>(out),
                                             stablerep::AugmentOutput{type}, channels_last, at<void>(scratch),
                                             scratch_bytes, device, at<void>(stream)));
}

int64_t augment_scratch_bytes(const stablerep::Pictures& pictures, const SpecNumbers& spec, int64_t number) {
    return stablerep::augment_scratch_bytes(pictures, std::bit_cast<stablerep::AugmentSpec>(spec), number);
}

void guided_step_cuda(const stablerep::GuidedStep& call, int device, std::uintptr_t stream) {
    check_cuda("guided_step", stablerep::guided_step_cuda(call, device, at<void>(stream)));
}

void to_pixels_cuda(const stablerep::ToPixels& call, int device, std::uintptr_t stream) {
    check_cuda("to_pixels", stablerep::to_pixels_cuda(call, device, at<void>(stream)));
}
#endif

// What was really compiled: stablerep-doctor prints it, why_not() reads it.
py::dict build_info() {
    py::dict info("version"_a = STABLEREP_VERSION, "compiler"_a = STABLEREP_COMPILER, "openmp"_a = false,
                  "cuda"_a = py::none(), "cuda_architectures"_a = py::none());
#ifdef _OPENMP
    info["openmp"] = true;
#endif
#ifdef STABLEREP_CUDA
    info["cuda"] = STABLEREP_CUDA;
    info["cuda_architectures"] = STABLEREP_CUDA_ARCHITECTURES;
#endif
    return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.def("build_info", &build_info);
    m.def("philox_normal", &philox_normal, "seed"_a, "prompt_ids"_a, "indices"_a, "images"_a, "elements"_a, "out"_a,
          "threads"_a);
    py::class_<stablerep::Pictures>(m, "Pictures")
        .def(py::init(&pictures_at), "table"_a, "first"_a, "number"_a, "height"_a, "width"_a);
    m.def("augment_draw", &augment_draw, "pictures"_a, "spec"_a, "seed"_a, "keys"_a, "params"_a);
    m.def("augment_apply", &augment_apply, "pictures"_a, "spec"_a, "params"_a, "out"_a, "type"_a, "channels_last"_a,
          "threads"_a);
    py::class_<stablerep::GuidedStep>(m, "GuidedStep")
        .def(py::init(&guided_step_call), "latents"_a, "output"_a, "previous_x0"_a, "table"_a, "step"_a,
             "guidance_scale"_a, "next"_a, "x0"_a, "pictures"_a, "elements"_a, "steps"_a, "guided"_a,
             "scale_per_picture"_a, "latents_dtype"_a, "output_dtype"_a);
    m.def("guided_step", &guided_step, "call"_a, "threads"_a);
    py::class_<stablerep::ToPixels>(m, "ToPixels")
        .def(py::init(&to_pixels_call), "images"_a, "out"_a, "slots"_a, "pictures"_a, "pool"_a, "size"_a,
             "resized_and_corner"_a, "out_size"_a, "channels_last"_a, "dtype"_a);
    m.def("to_pixels", &to_pixels, "call"_a, "threads"_a);
    bind_network(m);
#ifdef STABLEREP_CUDA
    m.def("philox_normal_cuda", &philox_normal_cuda, "seed"_a, "prompt_ids"_a, "indices"_a, "images"_a, "elements"_a,
          "out"_a, "device"_a, "stream"_a);
    m.def("augment_draw_cuda", &augment_draw_cuda, "pictures"_a, "spec"_a, "seed"_a, "keys"_a, "params"_a, "device"_a,
          "stream"_a);
    m.def("augment_apply_cuda", &augment_apply_cuda, "pictures"_a, "spec"_a, "params"_a, "out"_a, "type"_a,
          "channels_last"_a, "scratch"_a, "scratch_bytes"_a, "device"_a, "stream"_a);
    m.def("augment_scratch_bytes", &augment_scratch_bytes, "pictures"_a, "spec"_a, "number"_a);
    m.def("guided_step_cuda", &guided_step_cuda, "call"_a, "device"_a, "stream"_a);
    m.def("to_pixels_cuda", &to_pixels_cuda, "call"_a, "device"_a, "stream"_a);
#endif
}

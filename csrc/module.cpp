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
#include "noise.h"

namespace py = pybind11;
using namespace py::literals;

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
#ifdef STABLEREP_CUDA
    m.def("philox_normal_cuda", &philox_normal_cuda, "seed"_a, "prompt_ids"_a, "indices"_a, "images"_a, "elements"_a,
          "out"_a, "device"_a, "stream"_a);
    m.def("augment_draw_cuda", &augment_draw_cuda, "pictures"_a, "spec"_a, "seed"_a, "keys"_a, "params"_a, "device"_a,
          "stream"_a);
    m.def("augment_apply_cuda", &augment_apply_cuda, "pictures"_a, "spec"_a, "params"_a, "out"_a, "type"_a,
          "channels_last"_a, "scratch"_a, "scratch_bytes"_a, "device"_a, "stream"_a);
    m.def("augment_scratch_bytes", &augment_scratch_bytes, "pictures"_a, "spec"_a, "number"_a);
#endif
}

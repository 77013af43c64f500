#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

#include "network.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

using stablerep::Network;
using stablerep::NetworkCall;
using stablerep::NetworkSlot;
using stablerep::NetworkStep;
using stablerep::NetworkView;
using stablerep::StepKind;

template <auto member>
void set_address(NetworkStep& step, std::uintptr_t address) {
    step.*member = reinterpret_cast<const float*>(address);
}

std::vector<const float*> addresses(const std::vector<std::uintptr_t>& numbers) {
    std::vector<const float*> pointers;
    for (const std::uintptr_t number : numbers) pointers.push_back(reinterpret_cast<const float*>(number));
    return pointers;
}

void run(Network& network, std::uintptr_t input, std::uintptr_t output, std::uintptr_t time_bias,
         const std::vector<std::uintptr_t>& keys, const std::vector<std::uintptr_t>& values, std::uintptr_t text_rows,
         int64_t pictures, int64_t in_channels, int64_t out_channels, int halves, int threads) {
    const NetworkCall call{reinterpret_cast<const float*>(input), reinterpret_cast<float*>(output),
                           reinterpret_cast<const float*>(time_bias), addresses(keys), addresses(values),
                           reinterpret_cast<const int64_t*>(text_rows), pictures, in_channels, out_channels, halves};
    const py::gil_scoped_release release;
    network.run(call, threads);
}

}  // namespace

void bind_network(py::module_& m) {
    py::enum_<StepKind>(m, "StepKind")
        .value("copy", StepKind::copy)
        .value("matmul", StepKind::matmul)
        .value("geglu", StepKind::geglu)
        .value("layer_norm", StepKind::layer_norm)
        .value("group_norm", StepKind::group_norm)
        .value("conv3x3", StepKind::conv3x3)
        .value("conv3x3_stride2", StepKind::conv3x3_stride2)
        .value("attention", StepKind::attention);
    py::class_<NetworkView>(m, "NetworkView")
        .def(py::init([](int slot, int64_t offset) { return NetworkView{slot, offset}; }), "slot"_a, "offset"_a);
    py::class_<NetworkSlot>(m, "NetworkSlot")
        .def(py::init([](int64_t pixels, int64_t channels, bool shared) { return NetworkSlot{pixels, channels, shared}; }),
             "pixels"_a, "channels"_a, "shared"_a);
    py::class_<NetworkStep>(m, "NetworkStep")
        .def(py::init<>())
        .def_readwrite("kind", &NetworkStep::kind)
        .def_readwrite("shared", &NetworkStep::shared)
        .def_readwrite("height", &NetworkStep::height)
        .def_readwrite("width", &NetworkStep::width)
        .def_readwrite("in_channels", &NetworkStep::in_channels)
        .def_readwrite("out_channels", &NetworkStep::out_channels)
        .def_readwrite("in_", &NetworkStep::in)
        .def_readwrite("out", &NetworkStep::out)
        .def_readwrite("residual", &NetworkStep::residual)
        .def_readwrite("key", &NetworkStep::key)
        .def_readwrite("value", &NetworkStep::value)
        .def_readwrite("text", &NetworkStep::text)
        .def_property("weights", nullptr, &set_address<&NetworkStep::weights>)
        .def_property("bias", nullptr, &set_address<&NetworkStep::bias>)
        .def_readwrite("time_bias", &NetworkStep::time_bias)
        .def_property("norm_weight", nullptr, &set_address<&NetworkStep::norm_weight>)
        .def_property("norm_bias", nullptr, &set_address<&NetworkStep::norm_bias>)
        .def_readwrite("groups", &NetworkStep::groups)
        .def_readwrite("eps", &NetworkStep::eps)
        .def_readwrite("scale", &NetworkStep::scale)
        .def_readwrite("silu", &NetworkStep::silu)
        .def_readwrite("upsample", &NetworkStep::upsample)
        .def_readwrite("heads", &NetworkStep::heads)
        .def_readwrite("keys", &NetworkStep::keys);
    py::class_<Network>(m, "Network")
        .def(py::init<std::vector<NetworkSlot>, std::vector<NetworkStep>, int>(), "slots"_a, "steps"_a, "lanes"_a)
        .def("run", &run, "input"_a, "output"_a, "time_bias"_a, "keys"_a, "values"_a, "text_rows"_a, "pictures"_a,
             "in_channels"_a, "out_channels"_a, "halves"_a, "threads"_a);
}

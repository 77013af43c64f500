#include "cuda_device.h"

namespace stablerep {

const char* cuda_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace stablerep

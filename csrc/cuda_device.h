// Devices and errors of CUDA, for the launches in .cu files and for module.cpp, which knows no CUDA headers.
#pragma once

namespace stablerep {

const char* cuda_error_text(int error);  // of a cudaError_t

}  // namespace stablerep

#ifdef __CUDACC__
#include <cuda_runtime.h>

namespace stablerep {

// Makes the device of the tensors current for a launch and the one before current again.
// This module's CUDA runtime is linked statically: it does not know which device torch made current.
class OnDevice {
   public:
    explicit OnDevice(int device) {
        error_ = cudaGetDevice(&before_);
        if (error_ == cudaSuccess && device != before_) error_ = cudaSetDevice(device);
    }
    ~OnDevice() {
        if (error_ == cudaSuccess) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    cudaError_t error() const { return error_; }

   private:
    int before_ = 0;
    cudaError_t error_;
};

}  // namespace stablerep
#endif

// Where a function may run, and which compiled copy of it this is.
//
// Every header of core/ is compiled several times: once for each instruction set on the CPU, once by nvcc.
// SACFAST_ISA names the copy (CMake sets it for the CPU kernels). All code lives in sacfast::SACFAST_ISA, so that
// the linker can never merge a baseline function with its AVX-512 twin and run it on a processor that lacks it.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef SACFAST_ISA
#define SACFAST_ISA portable
#endif

#if defined(__CUDACC__)
#define SACFAST_HD __host__ __device__ __forceinline__
#else
#define SACFAST_HD inline __attribute__((always_inline))
#endif

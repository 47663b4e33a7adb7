# Refuses an nvcc of another CUDA major than the installed torch: what it builds would not load into that torch.
# TORCH_CUDA: the CUDA that torch was built with, empty for a CPU build; NVCC_VERSION: the compiler's.
# By itself: cmake -DTORCH_CUDA=12.8 -DNVCC_VERSION=13.0.1 -P cmake/cuda_major.cmake
string(REGEX MATCH "^[0-9]+" torch_cuda_major "${TORCH_CUDA}")
string(REGEX MATCH "^[0-9]+" nvcc_major "${NVCC_VERSION}")
if(TORCH_CUDA AND NOT torch_cuda_major EQUAL nvcc_major)
  message(FATAL_ERROR
          "sacfast: nvcc is of CUDA ${NVCC_VERSION} and the installed torch is built for CUDA ${TORCH_CUDA}: set "
          "CUDA_HOME to a toolkit of CUDA ${torch_cuda_major}, install a torch for CUDA ${nvcc_major}, or set "
          "SACFAST_CUDA=0 to build for the CPU alone")
endif()

// The functions of the CUDA runtime that csrc/ calls, for the interpreter. One that is missing here is a link error:
// add it, with the ordering that CUDA gives it.
#include <cuda_runtime_api.h>

#include <cstdlib>

#include "graphs.h"
#include "runtime.h"

namespace {

using ptx::Event;
using ptx::Graph;
using ptx::Stream;
using ptx::Work;

std::map<const void*, std::string>& kernel_names() {
  static std::map<const void*, std::string> names;  // by the address of the host's stub
  return names;
}

cudaError_t& last_error() {
  static cudaError_t error = cudaSuccess;
  return error;
}
cudaError_t keep(cudaError_t error) {
  if (error != cudaSuccess) last_error() = error;
  return error;
}

Stream& of(cudaStream_t stream) {
  return stream == nullptr ? ptx::default_stream() : *reinterpret_cast<Stream*>(stream);
}
Event& of(cudaEvent_t event) { return *reinterpret_cast<Event*>(event); }
ptx::Size3 size_of(dim3 size) { return {size.x, size.y, size.z}; }

cudaError_t queue(Stream& stream, const Work& work) {
  if (stream.capture != nullptr) {
    stream.capture->add(stream, work);
    return cudaSuccess;
  }
  return keep(ptx::carry_out(work, stream.chain, stream.heads) ? cudaSuccess : cudaErrorLaunchFailure);
}

struct Configuration {
  dim3 grid, block;
  std::size_t shared;
  cudaStream_t stream;
};
Configuration& configuration() {
  static Configuration pushed;
  return pushed;
}

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared, cudaStream_t stream,
                   const cudaLaunchAttribute* attributes, unsigned count) {
  const ptx::Function& function = *ptx::function_named(kernel_names().at(kernel));
  Work work = ptx::kernel_work(function, size_of(grid), size_of(block), arguments);
  work.grid.dynamic_shared = shared;
  for (unsigned i = 0; i < count; ++i) {
    if (attributes[i].id == cudaLaunchAttributeClusterDimension) {
      work.grid.cluster = attributes[i].val.clusterDim.x;
    } else if (attributes[i].id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      work.is_programmatic = attributes[i].val.programmaticStreamSerializationAllowed != 0;
    } else {
      throw ptx::Unsupported("a launch attribute that is not known: " + std::to_string(attributes[i].id));
    }
  }
  return queue(of(stream), work);
}

}  // namespace

extern "C" {

// ---- What nvcc's host code calls ----------------------------------------------------------------------------------
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  kernel_names()[stub] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared, CUstream_st* stream) {
  configuration() = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream) {
  *grid = configuration().grid;
  *block = configuration().block;
  *shared = configuration().shared;
  *static_cast<cudaStream_t*>(stream) = configuration().stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                               cudaStream_t stream) {
  return launch(kernel, grid, block, arguments, shared, stream, nullptr, 0);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub, void** arguments) {
  return launch(stub, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes, config->stream,
                config->attrs, config->numAttrs);
}

// ---- Errors, devices ----------------------------------------------------------------------------------------------
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error();
  last_error() = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorStreamCaptureUnjoined ? "capture is not joined to the original stream"
                                                 : "an error of the interpreter's runtime";
}
cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) { return keep(index == 0 ? cudaSuccess : cudaErrorInvalidDevice); }

// ---- Streams and events -------------------------------------------------------------------------------------------
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = reinterpret_cast<cudaStream_t>(new Stream(ptx::device().order.new_chain()));
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete &of(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return keep(of(stream).capture != nullptr ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete &of(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  of(event) = {of(stream).heads, of(stream).capture, of(stream).nodes};
  return cudaSuccess;
}
// A stream that waits for an event of a captured one is captured from then on.
cudaError_t cudaStreamWaitEvent(cudaStream_t waiting, cudaEvent_t event, unsigned) {
  Stream& stream = of(waiting);
  const Event& recorded = of(event);
  if (recorded.capture == nullptr) {
    if (stream.capture != nullptr) return keep(cudaErrorStreamCaptureIsolation);
    stream.heads.insert(stream.heads.end(), recorded.heads.begin(), recorded.heads.end());
    return cudaSuccess;
  }
  if (stream.capture == nullptr) {
    stream.capture = recorded.capture;
    stream.nodes.clear();
  }
  stream.nodes.insert(stream.nodes.end(), recorded.nodes.begin(), recorded.nodes.end());
  return cudaSuccess;
}
// What a stream is told is done at once.
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

// ---- Memory -------------------------------------------------------------------------------------------------------
// Page-locked memory, which kernels may write to.
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  ptx::device().memory.add(*memory, bytes, "page-locked memory", true, ptx::Content::kNothing);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  ptx::device().memory.remove(memory);
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  Work work;
  work.to = to;
  work.fill = value;
  work.bytes = bytes;
  return queue(of(stream), work);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  Work work;
  work.to = to;
  work.from = from;
  work.bytes = bytes;
  return queue(of(stream), work);
}

// ---- Graphs -------------------------------------------------------------------------------------------------------
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr) return keep(cudaErrorStreamCaptureUnsupported);
  if (of(stream).capture != nullptr) return keep(cudaErrorIllegalState);
  of(stream).capture = std::make_shared<ptx::Capture>();
  of(stream).capture->origin = &of(stream);
  of(stream).nodes.clear();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  const std::shared_ptr<ptx::Capture> capture = of(stream).capture;
  if (capture == nullptr || capture->origin != &of(stream)) return keep(cudaErrorIllegalState);
  const bool is_joined = capture->is_joined(of(stream));
  for (Stream* each : ptx::all_streams()) {
    if (each->capture == capture) each->capture = nullptr;
  }
  if (!is_joined) {
    ptx::device().report.add(ptx::Fault::kNotJoined, "a graph was captured");
    return keep(cudaErrorStreamCaptureUnjoined);
  }
  *graph = reinterpret_cast<cudaGraph_t>(new Graph(capture->nodes));
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
  *ready = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  if (of(stream).capture != nullptr) throw ptx::Unsupported("a graph within a graph");
  return keep(reinterpret_cast<Graph*>(graph)->launch(of(stream)) ? cudaSuccess : cudaErrorLaunchFailure);
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}

}  // extern "C"

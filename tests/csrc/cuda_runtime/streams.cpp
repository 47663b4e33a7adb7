// The CUDA runtime's functions for streams, events, memory and errors, by the stand-in.
#include <cstring>

#include "state.h"

using namespace standin;

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(state().last_error, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "an error of the stand-in";
}

// ---- Streams ------------------------------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  if (const cudaError_t error = enter("cudaStreamCreateWithFlags")) return error;
  *stream = new CUstream_st;
  (*stream)->agent = state().agents++;
  state().streams.insert(*stream);
  ++state().alive;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (stream->capture != nullptr) report("a stream is destroyed while a graph is recorded on it");
  if (stream->last != nullptr) run(stream->last);  // its work is done nevertheless
  state().streams.erase(stream);
  --state().alive;
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t error = enter_unsafe("cudaStreamSynchronize")) return error;
  host_waits_for(stream_of(stream)->last);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t to, cudaEvent_t event, unsigned) {
  if (const cudaError_t error = enter("cudaStreamWaitEvent")) return error;
  CUstream_st& stream = *stream_of(to);
  if (state().streams.count(&stream) == 0) {
    report("a stream waits that was destroyed");
    return kept(cudaErrorInvalidResourceHandle);
  }
  if (event->capture != nullptr) {
    if (!event->capture->is_active || (stream.capture != nullptr && stream.capture != event->capture)) {
      report("a stream waits for an event of another capture");
      return kept(cudaErrorStreamCaptureIsolation);
    }
    stream.capture = event->capture;
    for (const std::size_t node : event->captured) {
      if (std::count(stream.captured.begin(), stream.captured.end(), node) == 0) stream.captured.push_back(node);
    }
    return cudaSuccess;
  }
  if (stream.capture != nullptr) {
    report("a stream that records waits for an event from outside");
    stream.capture->is_valid = false;
    return kept(cudaErrorStreamCaptureIsolation);
  }
  return event->recorded == nullptr ? cudaSuccess : queue(to, "a wait", {}, nullptr, {event->recorded});
}

// ---- Events -------------------------------------------------------------------------------------------------------

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  if (const cudaError_t error = enter("cudaEventCreateWithFlags")) return error;
  *event = new CUevent_st;
  ++state().alive;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  --state().alive;
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t to) {
  if (const cudaError_t error = enter("cudaEventRecord")) return error;
  const CUstream_st& stream = *stream_of(to);
  event->capture = stream.capture;
  event->captured = stream.captured;
  if (stream.capture != nullptr) return cudaSuccess;
  const cudaError_t error = queue(to, "an event", {}, nullptr);
  event->recorded = stream.last;
  return error;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (const cudaError_t error = enter_unsafe("cudaEventQuery")) return error;
  if (event->recorded != nullptr && !event->recorded->is_done) return kept(cudaErrorNotReady);
  host_waits_for(event->recorded);
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t error = enter_unsafe("cudaEventSynchronize")) return error;
  host_waits_for(event->recorded);
  return cudaSuccess;
}

// ---- Memory -------------------------------------------------------------------------------------------------------

cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  if (const cudaError_t error = enter_unsafe("cudaHostAlloc")) return error;
  *memory = allocate(static_cast<std::int64_t>(bytes));
  ++state().alive;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) {
  release(memory, nullptr);
  --state().alive;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (const cudaError_t error = enter("cudaMemcpyAsync")) return error;
  char* const target = static_cast<char*>(to);
  const char* const source = static_cast<const char*>(from);
  const std::vector<Use> uses = {{source, source + bytes, false}, {target, target + bytes, true}};
  return queue(stream, "a copy", uses, [to, from, bytes] { std::memcpy(to, from, bytes); });
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  if (const cudaError_t error = enter("cudaMemsetAsync")) return error;
  char* const target = static_cast<char*>(to);
  return queue(stream, "a fill", {{target, target + bytes, true}}, [=] { std::memset(to, value, bytes); });
}

}  // extern "C"

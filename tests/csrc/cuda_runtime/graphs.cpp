// The CUDA runtime's functions for graphs and for recording them, by the stand-in.
#include "state.h"

using namespace standin;

namespace {

// The nodes that come before those given, and these.
std::set<std::size_t> with_all_before(const std::vector<Node>& nodes, std::vector<std::size_t> left) {
  std::set<std::size_t> found;
  while (!left.empty()) {
    const std::size_t node = left.back();
    left.pop_back();
    if (!found.insert(node).second) continue;
    left.insert(left.end(), nodes[node].before.begin(), nodes[node].before.end());
  }
  return found;
}

// Runs each node behind those that it waits for: of the ones that may run, the first or the last.
void run_nodes(const std::vector<Node>& nodes, Order order) {
  std::vector<bool> is_done(nodes.size());
  for (std::size_t left = nodes.size(); left > 0; --left) {
    const auto may_run = [&](std::size_t node) {
      const std::vector<std::size_t>& before = nodes[node].before;
      return !is_done[node] && std::all_of(before.begin(), before.end(), [&](std::size_t i) { return is_done[i]; });
    };
    std::size_t next = nodes.size();
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      const std::size_t node = order == Order::kLate ? nodes.size() - 1 - i : i;
      if (next == nodes.size() && may_run(node)) next = node;
    }
    nodes[next].work();
    is_done[next] = true;
  }
}

}  // namespace

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (const cudaError_t error = enter("cudaStreamBeginCapture")) return error;
  if (stream == nullptr) return kept(cudaErrorStreamCaptureUnsupported);
  if (mode == cudaStreamCaptureModeGlobal) report("a capture forbids calls of other threads");
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = stream;
  stream->captured.clear();
  state().captures.push_back(stream->capture);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture == nullptr || capture->origin != stream) return kept(cudaErrorStreamCaptureUnmatched);
  const bool all_joined = with_all_before(capture->nodes, stream->captured).size() == capture->nodes.size();
  for (const cudaStream_t each : state().streams) {
    if (each->capture != capture) continue;
    each->capture = nullptr;
    each->captured.clear();
  }
  capture->is_active = false;
  if (const cudaError_t error = enter("cudaStreamEndCapture")) return error;
  if (!capture->is_valid) return kept(cudaErrorStreamCaptureInvalidated);
  if (!all_joined) return kept(cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st{capture->nodes};
  ++state().alive;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  --state().alive;
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  if (const cudaError_t error = enter("cudaGraphInstantiate")) return error;
  *made = new CUgraphExec_st{graph->nodes, nullptr};
  ++state().alive;
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return enter("cudaGraphUpload"); }

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  if (const cudaError_t error = enter("cudaGraphLaunch")) return error;
  if (stream_of(stream)->capture != nullptr) {
    report("a graph is launched while one is recorded");
    return kept(cudaErrorStreamCaptureUnsupported);
  }
  std::vector<Use> uses;
  for (const Node& node : graph->nodes) uses.insert(uses.end(), node.uses.begin(), node.uses.end());
  // A graph never runs twice at a time.
  std::vector<Pointer> behind;
  if (graph->last != nullptr) behind.push_back(graph->last);
  const Order order = state().order;
  const cudaError_t error =
      queue(stream, "a graph", uses, [nodes = graph->nodes, order] { run_nodes(nodes, order); }, behind);
  graph->last = stream_of(stream)->last;
  return error;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  if (graph->last != nullptr && !graph->last->is_done) report("a graph is destroyed while it may run");
  --state().alive;
  delete graph;
  return cudaSuccess;
}

}  // extern "C"

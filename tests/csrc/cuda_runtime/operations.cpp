// The stand-in's work: what is queued, when it runs, and which memory it uses.
#include <tuple>

#include "state.h"

namespace standin {

State& state() {
  static State the_state;
  return the_state;
}

void report(const std::string& text) { state().reports.push_back(text); }

cudaError_t kept(cudaError_t error) {
  if (error != cudaSuccess) state().last_error = error;
  return error;
}

cudaError_t enter(const char* function) {
  state().host.tick(0);
  const auto wanted = state().failures.find(function);
  if (wanted == state().failures.end() || --wanted->second.first > 0) return cudaSuccess;
  const cudaError_t error = wanted->second.second;
  state().failures.erase(wanted);
  return kept(error);
}

cudaError_t enter_unsafe(const char* function) {
  for (const std::weak_ptr<Capture>& each : state().captures) {
    const std::shared_ptr<Capture> capture = each.lock();
    if (capture == nullptr || !capture->is_active) continue;
    report(std::string(function) + " is called while a graph is recorded");
    capture->is_valid = false;
    return kept(cudaErrorStreamCaptureUnsupported);
  }
  return enter(function);
}

cudaStream_t stream_of(cudaStream_t stream) {
  static CUstream_st legacy;
  if (stream != nullptr) return stream;
  if (legacy.agent == 0 || state().streams.count(&legacy) == 0) {
    legacy = {};
    legacy.agent = state().agents++;
    state().streams.insert(&legacy);
  }
  return &legacy;
}

std::vector<Use> uses_of(const void* parameters, std::size_t bytes) {
  std::vector<Use> uses;
  const char* const from = static_cast<const char*>(parameters);
  for (std::size_t at = 0; at + sizeof(char*) <= bytes; at += sizeof(char*)) {
    const char* value;
    __builtin_memcpy(&value, from + at, sizeof value);
    auto found = state().memory.upper_bound(value);
    if (found == state().memory.begin()) continue;
    --found;
    const char* const end = found->first + found->second.bytes;
    if (value < end) uses.push_back({found->first, end, !found->second.read_only});
  }
  return uses;
}

namespace {

constexpr std::size_t kQueueDepth = 1000;  // launches that a driver's queue holds, about

// Once each; who writes reads as well.
std::vector<Use> merged(std::vector<Use> uses) {
  std::sort(uses.begin(), uses.end(), [](const Use& a, const Use& b) {
    return std::make_tuple(a.begin, a.end, !a.writes) < std::make_tuple(b.begin, b.end, !b.writes);
  });
  const auto is_same = [](const Use& a, const Use& b) { return a.begin == b.begin && a.end == b.end; };
  uses.erase(std::unique(uses.begin(), uses.end(), is_same), uses.end());
  return uses;
}

void note_uses(const Operation& operation, const std::vector<Use>& uses) {
  for (const Use& use : merged(uses)) {
    for (auto& [base, allocation] : state().memory) {
      if (use.end <= base || use.begin >= base + allocation.bytes) continue;
      std::vector<Access>& all = allocation.accesses;
      for (const Access& other : all) {
        const bool meets = use.begin < other.use.end && other.use.begin < use.end && (use.writes || other.use.writes);
        if (!meets || operation.clock.at(other.agent) >= other.tick) continue;
        report(operation.name + " is not ordered behind " + other.name + ", which uses the same memory");
      }
      const auto tells_nothing_more = [&](const Access& each) {
        const bool is_covered = each.agent == operation.agent && each.use.begin == use.begin &&
                                each.use.end == use.end && (use.writes || !each.use.writes);
        return is_covered || state().host.at(each.agent) >= each.tick;
      };
      all.erase(std::remove_if(all.begin(), all.end(), tells_nothing_more), all.end());
      all.push_back({use, operation.name, operation.agent, operation.clock.at(operation.agent)});
    }
  }
}

cudaError_t record(CUstream_st& stream, const std::string& name, std::vector<Use> uses, std::function<void()> work) {
  stream.capture->nodes.push_back({name, std::move(uses), std::move(work), stream.captured});
  stream.captured = {stream.capture->nodes.size() - 1};
  return cudaSuccess;
}

}  // namespace

cudaError_t queue(cudaStream_t to, const std::string& name, std::vector<Use> uses, std::function<void()> work,
                  const std::vector<Pointer>& behind) {
  CUstream_st& stream = *stream_of(to);
  if (stream.capture != nullptr) return record(stream, name, std::move(uses), std::move(work));
  const auto made = std::make_shared<Operation>();
  made->name = name;
  made->agent = stream.agent;
  made->work = std::move(work);
  made->before = behind;
  if (stream.last != nullptr) made->before.push_back(stream.last);
  made->clock = state().host;
  for (const Pointer& each : made->before) made->clock.join(each->clock);
  made->clock.tick(stream.agent);
  note_uses(*made, uses);
  stream.last = made;
  stream.pending.push_back(made);
  while (!stream.pending.empty() && stream.pending.front()->is_done) stream.pending.pop_front();
  if (stream.pending.size() > kQueueDepth) report(name + " waits inside the driver: its queue is full");
  if (state().order == Order::kAtOnce) run(made);
  return cudaSuccess;
}

void run(const Pointer& operation) {
  std::vector<Pointer> left = {operation};
  while (!left.empty()) {
    const Pointer next = left.back();
    const auto blocking =
        std::find_if(next->before.begin(), next->before.end(), [](const Pointer& each) { return !each->is_done; });
    if (!next->is_done && blocking != next->before.end()) {
      left.push_back(*blocking);
      continue;
    }
    left.pop_back();
    if (next->is_done) continue;
    if (next->work) next->work();
    next->is_done = true;
    next->work = nullptr;
    next->before.clear();
  }
}

void host_waits_for(const Pointer& operation) {
  if (operation == nullptr) return;
  run(operation);
  state().host.join(operation->clock);
}

void reset(Order order) {
  State& all = state();
  all.order = order;
  all.reports.clear();
  all.failures.clear();
  all.last_error = cudaSuccess;
  all.memory.clear();
  all.released.clear();
  all.captures.clear();
}

const std::vector<std::string>& reports() { return state().reports; }

void fail(const std::string& function, int nth, cudaError_t error) { state().failures[function] = {nth, error}; }

int alive() { return state().alive; }

void* allocate(std::int64_t bytes, bool read_only) {
  auto memory = std::make_unique<char[]>(static_cast<std::size_t>(bytes));
  std::fill_n(memory.get(), bytes, '\xff');
  char* const base = memory.get();
  state().memory.insert({base, Allocation{bytes, read_only, false, std::move(memory), {}}});
  return base;
}

void release(void* memory, cudaStream_t stream) {
  const auto found = state().memory.find(static_cast<char*>(memory));
  if (found == state().memory.end()) return report("memory is released that was not allocated");
  Clock known = state().host;
  if (const Pointer& last = stream_of(stream)->last) known.join(last->clock);
  for (const Access& each : found->second.accesses) {
    if (known.at(each.agent) < each.tick) report("memory is released while " + each.name + " may use it");
  }
  // Who uses it nevertheless finds other numbers there.
  std::fill_n(found->second.memory.get(), found->second.bytes, '\xff');
  state().released.push_back(std::move(found->second.memory));
  state().memory.erase(found);
}

cudaError_t launch(cudaStream_t stream, const std::string& name, const void* parameters, std::size_t bytes,
                   std::function<void()> work) {
  if (const cudaError_t error = enter("launch")) return error;
  for (const std::weak_ptr<Capture>& each : state().captures) {
    const std::shared_ptr<Capture> capture = each.lock();
    if (stream != nullptr || capture == nullptr || !capture->is_active) continue;
    report(name + " is launched on the default stream while a graph is recorded");
    return kept(cudaErrorStreamCaptureImplicit);
  }
  if (state().last_error != cudaSuccess) {
    report(name + " is blamed for the error of an earlier call");
    return std::exchange(state().last_error, cudaSuccess);
  }
  return queue(stream, name, uses_of(parameters, bytes), std::move(work));
}

void run_in_turns() {
  for (bool ran = true; ran;) {
    ran = false;
    for (const cudaStream_t stream : state().streams) {
      while (!stream->pending.empty() && stream->pending.front()->is_done) stream->pending.pop_front();
      if (stream->pending.empty()) continue;
      run(stream->pending.front());
      ran = true;
    }
  }
}

}  // namespace standin

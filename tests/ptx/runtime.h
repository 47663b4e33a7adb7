// The stand-in for the CUDA runtime: the launchers and the engine of csrc/ are linked with it as they are, and every
// launch runs in the interpreter. Streams, events and graphs order launches as CUDA's do.
#pragma once

#include "machine.h"

namespace ptx {

// The one device that the runtime knows.
Device& device();

// Adds the kernels of a PTX file. Launches look for them by name.
void load(const std::string& path);
void load_text(const std::string& text, const std::string& path);
// How much of the PTX has run: of all kernels that were loaded.
struct Coverage {
  std::size_t instructions = 0, instructions_run = 0, kernels = 0;
  std::vector<std::string> never_launched;
};
Coverage coverage();
const std::string& target();  // of the first file: "sm_90a"

// How a launch that C++ does not make is made: of a kernel written in PTX.
struct Launch {
  std::string kernel;
  Size3 blocks, threads;
  std::uint32_t cluster = 1;
  bool is_programmatic = false;  // may start before the launch before it on the stream has ended
  std::vector<const void*> arguments;
};
// On the default stream. Returns whether it came to its end.
bool run(const Launch& launch);

}  // namespace ptx

// What the native tests share: EXPECT, and numbers that look random.
#pragma once

#include <cstdint>
#include <cstdio>

inline int failures = 0;

#define EXPECT(condition)                                                \
  do {                                                                   \
    if (!(condition)) {                                                  \
      ++failures;                                                        \
      std::printf("FAILED %s:%d: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                    \
  } while (false)

// A small generator for test inputs: splitmix64.
struct Mixer {
  std::uint64_t state;
  std::uint64_t operator()() {
    state += 0x9e3779b97f4a7c15u;
    std::uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // A whole number of [-most, most].
  std::int64_t whole(std::int64_t most) {
    return static_cast<std::int64_t>((*this)() % static_cast<std::uint64_t>(2 * most + 1)) - most;
  }
  // Of [-1, 1).
  double uniform() { return static_cast<double>((*this)() >> 11) * 0x1p-52 - 1.0; }
};

inline int report() {
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

// The memory that kernels may touch: regions of the host's, each with what is known of its pieces.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "races.h"

namespace ptx {

enum class Content { kValues, kNothing };  // whether a region may be read before it is written

struct Region {
  std::uint64_t base = 0;
  std::size_t bytes = 0;
  std::string name;
  bool is_writable = true;
  Content content = Content::kValues;
  int granule = 4;  // bytes of a piece: the narrowest element, so that neighbours are not taken for one place
  std::vector<std::unique_ptr<Cell[]>> pages;

  static constexpr std::size_t kPage = 1024;
  Cell& cell(std::size_t index) {
    std::unique_ptr<Cell[]>& page = pages[index / kPage];
    if (page == nullptr) page = std::make_unique<Cell[]>(kPage);
    return page[index % kPage];
  }
};

class Memory {
 public:
  void add(const void* base, std::size_t bytes, const std::string& name, bool is_writable = true,
           Content content = Content::kValues, int granule = 4) {
    if (bytes == 0) return;
    Region region;
    region.base = reinterpret_cast<std::uint64_t>(base);
    region.bytes = bytes;
    region.name = name;
    region.is_writable = is_writable;
    region.content = content;
    region.granule = granule;
    region.pages.resize(bytes / static_cast<std::size_t>(granule) / Region::kPage + 1);
    const std::uint64_t key = region.base;
    regions_[key] = std::move(region);
    last_ = nullptr;
  }
  void remove(const void* base) {
    regions_.erase(reinterpret_cast<std::uint64_t>(base));
    last_ = nullptr;
  }
  // The region that has all of these bytes, or null.
  Region* find(std::uint64_t address, std::size_t bytes) {
    if (last_ != nullptr && holds(*last_, address, bytes)) return last_;
    auto after = regions_.upper_bound(address);
    if (after == regions_.begin()) return nullptr;
    Region& region = (--after)->second;
    if (!holds(region, address, bytes)) return nullptr;
    last_ = &region;
    return last_;
  }

  // Calls visit(region, cell) for every piece of memory that these bytes touch.
  template <class Visit>
  void for_each_cell(std::uint64_t address, std::size_t bytes, const Visit& visit) {
    for (auto& [base, region] : regions_) {
      const std::uint64_t first = std::max(base, address), end = std::min(base + region.bytes, address + bytes);
      const auto granule = static_cast<std::uint64_t>(region.granule);
      for (std::uint64_t at = first < end ? (first - base) / granule : 0; at * granule + base < end && first < end;
           ++at) {
        visit(region, region.cell(at));
      }
    }
  }

 private:
  static bool holds(const Region& region, std::uint64_t address, std::size_t bytes) {
    return address >= region.base && address + bytes <= region.base + region.bytes;
  }
  std::map<std::uint64_t, Region> regions_;
  Region* last_ = nullptr;
};

}  // namespace ptx

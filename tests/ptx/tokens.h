// The words of a PTX file.
#pragma once

#include <cctype>
#include <string>
#include <vector>

namespace ptx {

struct Token {
  std::string text;
  int line;
};

// Words are names, numbers, opcodes with their modifiers and quoted strings; every other character stands alone.
inline std::vector<Token> tokens_of(const std::string& text) {
  std::vector<Token> tokens;
  int line = 1;
  const auto in_word = [&](std::size_t i) {
    const char c = text[i];
    if (std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '$' || c == '%') return true;
    // Two colons are a part of a modifier, one ends a label.
    return c == ':' && ((i + 1 < text.size() && text[i + 1] == ':') || (i > 0 && text[i - 1] == ':'));
  };
  for (std::size_t i = 0; i < text.size();) {
    const char c = text[i];
    std::size_t end = i + 1;
    if (c == '\n') {
      ++line;
    } else if (text.compare(i, 2, "//") == 0) {
      end = text.find('\n', i);
    } else if (text.compare(i, 2, "/*") == 0) {
      end = text.find("*/", i) + 2;
    } else if (c == '"') {
      end = text.find('"', i + 1) + 1;
      tokens.push_back({text.substr(i + 1, end - i - 2), line});
    } else if (in_word(i)) {
      while (end < text.size() && in_word(end)) ++end;
      tokens.push_back({text.substr(i, end - i), line});
    } else if (!std::isspace(static_cast<unsigned char>(c))) {
      tokens.push_back({std::string(1, c), line});
    }
    if (end == std::string::npos || end == 1) break;
    i = end;
  }
  return tokens;
}

}  // namespace ptx

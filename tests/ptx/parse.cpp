// From the text of a PTX file to functions of instructions (ptx.h). Grammar: PTX ISA, chapters 4, 5 and 7.1.
#include <algorithm>

#include "ptx.h"
#include "tokens.h"

namespace ptx {
namespace {

std::int64_t align_up(std::int64_t value, std::int64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

std::vector<std::string> split_at_dots(const std::string& word) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  for (std::size_t dot; (dot = word.find('.', begin)) != std::string::npos; begin = dot + 1) {
    parts.push_back(word.substr(begin, dot - begin));
  }
  parts.push_back(word.substr(begin));
  return parts;
}

const std::map<std::string, int>& special_registers() {
  static const std::map<std::string, int> names = {{"%tid.x", kTidX},
                                                   {"%tid.y", kTidY},
                                                   {"%tid.z", kTidZ},
                                                   {"%ntid.x", kBlockSizeX},
                                                   {"%ntid.y", kBlockSizeY},
                                                   {"%ntid.z", kBlockSizeZ},
                                                   {"%ctaid.x", kBlockX},
                                                   {"%ctaid.y", kBlockY},
                                                   {"%ctaid.z", kBlockZ},
                                                   {"%nctaid.x", kGridX},
                                                   {"%nctaid.y", kGridY},
                                                   {"%nctaid.z", kGridZ},
                                                   {"%laneid", kLane},
                                                   {"%warpid", kWarp},
                                                   {"%cluster_ctarank", kClusterRank},
                                                   {"%cluster_nctarank", kClusterSize},
                                                   {"%cluster_ctaid.x", kClusterBlockX},
                                                   {"%cluster_nctaid.x", kClusterBlocksX}};
  return names;
}

struct Variable {
  Space space;
  std::uint64_t address;
};

class Parser {
 public:
  Parser(const std::string& text, const std::string& path) : tokens_(tokens_of(text)), path_(path) {
    module_ = std::make_unique<Module>();
    module_->path = path;
  }

  std::unique_ptr<Module> run() {
    while (at_ < tokens_.size()) statement_of_module();
    for (auto& [name, function] : module_->functions) resolve(*function);
    return std::move(module_);
  }

 private:
  // ---- Tokens ---------------------------------------------------------------------------------------------------
  const std::string& peek(std::size_t ahead = 0) const {
    static const std::string end;
    return at_ + ahead < tokens_.size() ? tokens_[at_ + ahead].text : end;
  }
  std::string next() {
    if (at_ >= tokens_.size()) fail("the file ends within a statement");
    return tokens_[at_++].text;
  }
  bool take(const char* text) {
    if (peek() != text) return false;
    ++at_;
    return true;
  }
  void expect(const char* text) {
    if (!take(text)) fail("expected '" + std::string(text) + "', got '" + peek() + "'");
  }
  [[noreturn]] void fail(const std::string& what) const {
    const int line = tokens_[std::min(at_, tokens_.size() - 1)].line;
    throw Unsupported(path_ + ":" + std::to_string(line) + ": " + what);
  }
  void skip_line() {
    for (const int line = tokens_[at_].line; at_ < tokens_.size() && tokens_[at_].line == line;) ++at_;
  }
  void skip_braces() {
    while (!take("{")) next();
    for (int depth = 1; depth > 0;) {
      const std::string word = next();
      depth += word == "{" ? 1 : word == "}" ? -1 : 0;
    }
  }
  std::int64_t whole_number() {
    const bool is_negative = take("-");
    const std::string word = next();
    if (!std::isdigit(static_cast<unsigned char>(word[0]))) fail("expected a number, got '" + word + "'");
    // 0f and 0d: the bits of a float or a double.
    const bool is_float = word.size() > 2 && word[0] == '0' && std::string("fFdD").find(word[1]) != std::string::npos;
    const std::uint64_t bits = is_float ? std::stoull(word.substr(2), nullptr, 16) : std::stoull(word, nullptr, 0);
    return is_negative ? -static_cast<std::int64_t>(bits) : static_cast<std::int64_t>(bits);
  }

  // ---- The module -----------------------------------------------------------------------------------------------
  void statement_of_module() {
    const std::string word = peek();
    if (word == ".version" || word == ".address_size") return skip_line();
    if (word == ".target") {
      module_->target = peek(1);
      return skip_line();
    }
    if (word == ".file") {
      module_->files[std::stoi(peek(1))] = peek(2);
      return skip_line();
    }
    if (word == ".section") return skip_braces();
    if (word == ".visible" || word == ".weak" || word == ".extern" || word == ".common") {
      ++at_;
      return;
    }
    if (word == ".entry" || word == ".func") return function();
    if (word == ".global" || word == ".const" || word == ".shared") return global_variable();
    fail("unknown statement '" + word + "'");
  }

  struct Declaration {
    std::string name;
    std::int64_t size, alignment, element;
  };

  // .align 8 .b8 name[12]
  Declaration declaration() {
    Declaration found{"", 0, 0, 1};
    while (peek()[0] == '.') {
      const std::string word = next();
      Type type;
      if (word == ".align") {
        found.alignment = whole_number();
      } else if (type_of(word.substr(1), type)) {
        found.element = std::max(1, type.bits / 8);
      }
    }
    found.name = next();
    std::int64_t count = 1;
    while (take("[")) {
      count *= peek() == "]" ? 0 : whole_number();
      expect("]");
    }
    found.size = found.element * count;
    if (found.alignment == 0) found.alignment = found.element;
    return found;
  }

  void global_variable() {
    const bool is_shared = next() == ".shared";
    const Declaration found = declaration();
    if (is_shared) {
      shared_bytes_ = align_up(shared_bytes_, found.alignment);
      globals_[found.name] = {Space::kShared, static_cast<std::uint64_t>(shared_bytes_)};
      shared_bytes_ += found.size;
      return expect(";");
    }
    auto memory = std::make_unique<std::vector<std::uint64_t>>(static_cast<std::size_t>(found.size / 8 + 1));
    auto* bytes = reinterpret_cast<char*>(memory->data());
    globals_[found.name] = {Space::kGlobal, reinterpret_cast<std::uint64_t>(bytes)};
    module_->storage.push_back(std::move(memory));
    if (take("=")) {
      const bool is_list = take("{");
      for (std::int64_t at = 0; at < found.size; at += found.element) {
        const std::int64_t number = whole_number();
        std::memcpy(bytes + at, &number, static_cast<std::size_t>(found.element));
        if (!take(",")) break;
      }
      if (is_list) expect("}");
    }
    expect(";");
  }

  // ---- Functions ------------------------------------------------------------------------------------------------
  void function() {
    auto made = std::make_unique<Function>();
    f_ = made.get();
    f_->module = module_.get();
    f_->is_entry = next() == ".entry";
    f_->slots.assign(kSpecials, 0);
    f_->shared_bytes = shared_bytes_;
    scopes_.assign(1, {});
    variables_ = globals_;
    labels_.clear();
    constants_.clear();
    if (peek() == "(") f_->results = parameter_list();
    f_->name = next();
    if (peek() == "(") f_->parameters = parameter_list();
    while (peek() != "{" && peek() != ";") next();  // .maxntid and the like
    if (take(";")) return;                          // declared only
    body();
    f_->code.emplace_back();
    f_->code.back().code = Code::kReturn;
    f_->details.emplace_back();
    f_->details.back().text = "the end of the function";
    for (std::size_t i = 0; i < f_->code.size(); ++i) {
      Details& details = f_->details[i];
      for (const std::string& label : tables_[details.label]) details.targets.push_back(labels_.at(label));
      if (f_->code[i].code == Code::kBranch) {
        if (labels_.count(details.label) == 0) fail("no label " + details.label);
        f_->code[i].target = labels_[details.label];
      }
    }
    module_->functions[f_->name] = std::move(made);
  }

  std::vector<Parameter> parameter_list() {
    std::vector<Parameter> list;
    expect("(");
    while (!take(")")) {
      const Declaration found = declaration();
      if (f_->is_entry) {
        const std::int64_t offset = align_up(f_->parameter_bytes, found.alignment);
        f_->parameter_bytes = offset + found.size;
        list.push_back({offset, found.size});
        variables_[found.name] = {Space::kParam, static_cast<std::uint64_t>(offset)};
      } else {
        list.push_back(call_parameter(found));
      }
      take(",");
    }
    return list;
  }

  Parameter call_parameter(const Declaration& found) {
    const std::int64_t offset = align_up(f_->call_parameter_bytes, 16);
    f_->call_parameter_bytes = offset + found.size;
    variables_[found.name] = {Space::kParam, static_cast<std::uint64_t>(kCallParameters + offset)};
    return {offset, found.size};
  }

  void body() {
    expect("{");
    for (int depth = 1; depth > 0;) {
      if (take(";")) continue;
      if (take("{")) {
        ++depth;
        scopes_.emplace_back();
      } else if (take("}")) {
        --depth;
        scopes_.pop_back();
      } else if (peek() == ".loc") {
        file_ = std::stoi(peek(1));
        line_ = std::stoi(peek(2));
        skip_line();
      } else if (peek()[0] == '.') {
        directive();
      } else if (peek(1) == ":") {
        label();
      } else {
        instruction();
      }
    }
  }

  void label() {
    const std::string name = next();
    expect(":");
    if (!take(".branchtargets")) {
      labels_[name] = static_cast<int>(f_->code.size());
      return;
    }
    do {
      tables_[name].push_back(next());
    } while (take(","));
  }

  void directive() {
    const std::string word = next();
    if (word == ".pragma") {
      next();
    } else if (word == ".reg") {
      next();  // the type: every instruction says it again
      do {
        const std::string name = next();
        std::int64_t count = -1;
        if (take("<")) {
          count = whole_number();
          expect(">");
        }
        if (count < 0) scopes_.back()[name] = new_slot(0);
        for (std::int64_t i = 0; i < count; ++i) scopes_.back()[name + std::to_string(i)] = new_slot(0);
      } while (take(","));
    } else if (word == ".param") {
      call_parameter(declaration());
    } else if (word == ".shared" || word == ".local") {
      std::int64_t& used = word == ".shared" ? f_->shared_bytes : f_->local_bytes;
      const Declaration found = declaration();
      used = align_up(used, found.alignment);
      variables_[found.name] = {word == ".shared" ? Space::kShared : Space::kLocal, static_cast<std::uint64_t>(used)};
      used += found.size;
    } else {
      fail("unknown directive '" + word + "'");
    }
  }

  // ---- Instructions ---------------------------------------------------------------------------------------------
  void instruction() {
    const std::size_t first = at_;
    Instruction instruction;
    Details details;
    details.file = file_;
    details.line = line_;
    if (take("@")) {
      instruction.is_negated = take("!");
      instruction.predicate = slot_of(next());
    }
    details.modifiers = split_at_dots(next());
    details.opcode = details.modifiers.front();
    details.modifiers.erase(details.modifiers.begin());
    for (const std::string& modifier : details.modifiers) {
      Type type;
      if (type_of(modifier, type)) details.types.push_back(type);
    }
    if (details.opcode == "bra" || details.opcode == "brx") {
      if (details.opcode == "brx") {
        details.from.push_back(slot_of(next()));
        expect(",");
      }
      details.label = next();
    } else if (details.opcode == "call") {
      call(details);
    } else {
      operands(instruction, details);
    }
    for (std::size_t i = first; i < at_; ++i) details.text += (i > first ? " " : "") + tokens_[i].text;
    if (peek() != "}") expect(";");
    instruction.to = details.to.empty() ? kSink : details.to[0];
    int* const read[] = {&instruction.a, &instruction.b, &instruction.c, &instruction.d};
    for (std::size_t i = 0; i < std::min<std::size_t>(4, details.from.size()); ++i) *read[i] = details.from[i];
    decode(instruction, details);
    f_->code.push_back(instruction);
    f_->details.push_back(std::move(details));
  }

  // The first operand is written, but for stores and the like; the address comes first among the slots that are read.
  void operands(Instruction& instruction, Details& details) {
    static const std::vector<std::string> reading = {"st", "red", "bar", "barrier", "cp", "griddepcontrol", "membar"};
    bool writes = std::find(reading.begin(), reading.end(), details.opcode) == reading.end() && peek() != ";";
    int addresses = 0;
    while (peek() != ";" && peek() != "}") {
      if (take("[")) {
        // Of two addresses, as cp.async has them, the second is a slot that stands for itself.
        const int base = slot_of(next());
        const std::int64_t offset = take("+") ? whole_number() : 0;
        if (addresses++ == 0) {
          instruction.offset = offset;
          details.from.insert(details.from.begin(), base);
        } else if (offset == 0) {
          details.from.push_back(base);
        } else {
          fail("an offset in a second address");
        }
        expect("]");
      } else if (take("{")) {
        do {
          (writes ? details.to : details.from).push_back(slot_of(operand_word()));
        } while (take(","));
        expect("}");
      } else {
        (writes ? details.to : details.from).push_back(slot_of(operand_word()));
        if (take("|")) details.to.push_back(slot_of(next()));
      }
      writes = false;
      if (!take(",")) break;
    }
  }

  // (result), name, (argument, argument)
  void call(Details& details) {
    if (take("(")) {
      details.result = static_cast<std::int64_t>(variables_.at(next()).address) - kCallParameters;
      expect(")");
      expect(",");
    }
    details.label = next();
    if (!take(",")) return;
    expect("(");
    while (!take(")")) {
      details.arguments.push_back(static_cast<std::int64_t>(variables_.at(next()).address) - kCallParameters);
      take(",");
    }
  }

  std::string operand_word() { return take("-") ? "-" + next() : take("!") ? "!" + next() : next(); }

  int new_slot(std::uint64_t start) {
    f_->slots.push_back(start);
    return static_cast<int>(f_->slots.size()) - 1;
  }

  int constant(std::uint64_t bits) {
    const auto found = constants_.find(bits);
    return found != constants_.end() ? found->second : constants_[bits] = new_slot(bits);
  }

  int slot_of(const std::string& word) {
    if (word == "_") return kSink;
    for (std::size_t i = scopes_.size(); i-- > 0;) {
      const auto found = scopes_[i].find(word);
      if (found != scopes_[i].end()) return found->second;
    }
    const auto special = special_registers().find(word);
    if (special != special_registers().end()) return special->second;
    const auto variable = variables_.find(word);
    if (variable != variables_.end()) return constant(variable->second.address);
    if (word == "WARP_SZ") return constant(32);
    const std::size_t digit = word[0] == '-' ? 1 : 0;
    if (!std::isdigit(static_cast<unsigned char>(word[digit]))) fail("unknown operand '" + word + "'");
    at_ -= 1;  // read the number once more, without its sign
    const std::uint64_t bits = static_cast<std::uint64_t>(whole_number());
    return constant(digit == 1 ? ~bits + 1 : bits);
  }

  void resolve(Function& function) {
    for (std::size_t i = 0; i < function.code.size(); ++i) {
      Details& details = function.details[i];
      const Instruction& instruction = function.code[i];
      if (instruction.code == Code::kCall) {
        const auto found = module_->functions.find(details.label);
        if (found == module_->functions.end()) throw Unsupported(path_ + ": no function " + details.label);
        details.callee = found->second.get();
      }
      const bool may_be_shared = instruction.space == Space::kShared || instruction.space == Space::kSharedCluster ||
                                 instruction.space == Space::kGeneric;
      if (may_be_shared && instruction.bytes > 0) {
        function.narrowest_shared = std::min(function.narrowest_shared, static_cast<int>(instruction.bytes));
      }
    }
  }

  const std::vector<Token> tokens_;
  const std::string path_;
  std::size_t at_ = 0;
  std::unique_ptr<Module> module_;
  std::map<std::string, Variable> globals_;
  std::int64_t shared_bytes_ = 0;

  // Of the function in hand.
  Function* f_ = nullptr;
  std::vector<std::map<std::string, int>> scopes_;
  std::map<std::string, Variable> variables_;
  std::map<std::string, int> labels_;
  std::map<std::string, std::vector<std::string>> tables_;
  std::map<std::uint64_t, int> constants_;
  int file_ = 0, line_ = 0;
};

}  // namespace

bool type_of(const std::string& modifier, Type& type) {
  static const std::map<std::string, Type> types = {
      {"b8", {Kind::kBits, 8}},          {"b16", {Kind::kBits, 16}},          {"b32", {Kind::kBits, 32}},
      {"b64", {Kind::kBits, 64}},        {"u8", {Kind::kUnsigned, 8}},        {"u16", {Kind::kUnsigned, 16}},
      {"u32", {Kind::kUnsigned, 32}},    {"u64", {Kind::kUnsigned, 64}},      {"s8", {Kind::kSigned, 8}},
      {"s16", {Kind::kSigned, 16}},      {"s32", {Kind::kSigned, 32}},        {"s64", {Kind::kSigned, 64}},
      {"f16", {Kind::kFloat, 16}},       {"f32", {Kind::kFloat, 32}},         {"f64", {Kind::kFloat, 64}},
      {"bf16", {Kind::kBrainFloat, 16}}, {"bf16x2", {Kind::kBrainFloat, 32}}, {"tf32", {Kind::kTensorFloat, 32}},
      {"pred", {Kind::kPredicate, 1}}};
  const auto found = types.find(modifier);
  if (found == types.end()) return false;
  type = found->second;
  return true;
}

std::unique_ptr<Module> parse(const std::string& text, const std::string& path) { return Parser(text, path).run(); }

}  // namespace ptx

#include "suite/yaml.hpp"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <unordered_map>

namespace attnbench::yaml {

namespace {

[[noreturn]] void fail(const Place& place, const std::string& message) {
  throw SuiteErrors({{place, message}});
}

Place place_of(const std::string& file, const YAML::Mark& mark) {
  return {file, mark.line + 1, mark.column + 1};
}

bool digits_only(std::string_view s) {
  return !s.empty() && s.find_first_not_of("0123456789") == std::string_view::npos;
}

/// [-+]? ( digits | digits.digits? | .digits ) ( [eE][-+]?digits )?, with a dot or an exponent.
bool looks_like_float(std::string_view s) {
  if (!s.empty() && (s[0] == '-' || s[0] == '+')) s.remove_prefix(1);
  const size_t e = s.find_first_of("eE");
  if (e != std::string_view::npos) {
    std::string_view exponent = s.substr(e + 1);
    if (!exponent.empty() && (exponent[0] == '-' || exponent[0] == '+')) exponent.remove_prefix(1);
    if (!digits_only(exponent)) return false;
    s = s.substr(0, e);
  }
  const size_t dot = s.find('.');
  if (dot == std::string_view::npos) return e != std::string_view::npos && digits_only(s);
  const std::string_view whole = s.substr(0, dot), fraction = s.substr(dot + 1);
  return (digits_only(whole) && (fraction.empty() || digits_only(fraction))) ||
         (whole.empty() && digits_only(fraction));
}

/// The offset of the first byte that is not part of well-formed UTF-8, or npos. Overlong forms, surrogates
/// and code points above U+10FFFF are not well formed.
size_t invalid_utf8(std::string_view s) {
  for (size_t i = 0; i < s.size();) {
    const auto byte = [&](size_t k) { return k < s.size() ? static_cast<unsigned char>(s[k]) : 0u; };
    const unsigned c = byte(i);
    const int extra = c < 0x80                  ? 0
                      : (c >= 0xc2 && c < 0xe0) ? 1
                      : (c >= 0xe0 && c < 0xf0) ? 2
                      : (c >= 0xf0 && c < 0xf5) ? 3
                                                : -1;
    if (extra < 0) return i;
    for (int k = 1; k <= extra; ++k)
      if ((byte(i + static_cast<size_t>(k)) & 0xc0u) != 0x80u) return i;
    const unsigned second = byte(i + 1);
    if ((c == 0xe0 && second < 0xa0) || (c == 0xed && second >= 0xa0) || (c == 0xf0 && second < 0x90) ||
        (c == 0xf4 && second >= 0x90))
      return i;
    i += static_cast<size_t>(extra) + 1;
  }
  return std::string_view::npos;
}

Place place_at(const std::string& text, const std::string& file, size_t offset) {
  int line = 1;
  size_t start = 0;
  for (size_t i = 0; i < offset; ++i)
    if (text[i] == '\n') ++line, start = i + 1;
  return {file, line, static_cast<int>(offset - start) + 1};
}

void check_bytes(const std::string& text, const std::string& file) {
  if (text.size() > kMaxBytes)
    fail({file, 0, 0}, "the file has " + std::to_string(text.size()) + " bytes; a suite may have " +
                           std::to_string(kMaxBytes));
  const size_t nul = text.find('\0');
  if (nul != std::string::npos) fail(place_at(text, file, nul), "a NUL byte; a suite is UTF-8 text");
  const size_t bad = invalid_utf8(text);
  if (bad != std::string::npos)
    fail(place_at(text, file, bad), "a byte that is not valid UTF-8; save the file as UTF-8");
  bool indentation = true;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\n')
      indentation = true;
    else if (text[i] == '\t' && indentation)
      fail(place_at(text, file, i), "a tab in the indentation; YAML wants spaces");
    else if (text[i] != ' ')
      indentation = false;
  }
}

/// Builds the tree from yaml-cpp's events. Its Node API is not used: it loses duplicate keys, the order of
/// the file and the difference between 64 and "64", and it recurses into aliases.
class Builder : public YAML::EventHandler {
 public:
  Builder(const std::string& text, const std::string& file) : file_(file) {
    size_t start = 0;
    for (size_t end; (end = text.find('\n', start)) != std::string::npos; start = end + 1)
      lines_.push_back(text.substr(start, end - start));
    lines_.push_back(text.substr(start));
  }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0) fail(place_of(file_, mark), "a second document; a suite file holds one");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    auto n = std::make_shared<Node>();
    n->place = place_of(file_, mark);
    add(n, anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto it = anchors_.find(anchor);
    if (it == anchors_.end()) fail(place_of(file_, mark), "the alias refers to a node that contains it");
    attach(it->second, place_of(file_, mark));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    auto n = std::make_shared<Node>();
    n->place = place_of(file_, mark);
    n->text = text;
    // yaml-cpp: "!" stands for quoted and block scalars, "?" or nothing for plain ones.
    n->quoted = tag == "!";
    if (n->quoted) check_closed(n->place);
    if (tag == "!" || tag == "tag:yaml.org,2002:str") {
      n->value = Value(text);
    } else if (tag.empty() || tag == "?") {
      std::string error;
      n->value = typed(text, error);
      if (!error.empty()) fail(n->place, error);
    } else {
      fail(n->place, "the tag '" + tag + "' is not supported in a suite");
    }
    locate_text(*n);
    add(n, anchor);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(Node::Kind::list, mark, tag, anchor);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(Node::Kind::map, mark, tag, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapEnd() override { close(); }

  NodePtr root() const { return root_; }

 private:
  struct Frame {
    std::shared_ptr<Node> node;
    YAML::anchor_t anchor;
    bool have_key = false;
    bool key_is_merge = false;
    std::string key;
    Place key_place;
    std::vector<std::pair<NodePtr, Place>> merges;
    std::unordered_map<std::string, int> lines;  ///< the keys so far and where they were set
  };

  void locate_text(Node& n) const {
    const size_t line = static_cast<size_t>(n.place.line - 1);
    const size_t column = static_cast<size_t>(n.place.column - 1) + (n.quoted ? 1 : 0);
    if (line < lines_.size() && column <= lines_[line].size() && !n.text.empty() &&
        lines_[line].compare(column, n.text.size(), n.text) == 0)
      n.text_column = static_cast<int>(column) + 1;
  }

  /// yaml-cpp takes the end of the file for the end of a quoted text.
  void check_closed(const Place& place) const {
    size_t line = static_cast<size_t>(place.line - 1), column = static_cast<size_t>(place.column - 1);
    if (line >= lines_.size() || column >= lines_[line].size()) return;
    const char quote = lines_[line][column];
    if (quote != '"' && quote != '\'') return;  // a block text
    for (++column; line < lines_.size(); ++line, column = 0)
      for (; column < lines_[line].size(); ++column) {
        const char c = lines_[line][column];
        if (c == '\\' && quote == '"') {
          ++column;
        } else if (c == quote) {
          if (quote == '"' || lines_[line].compare(column, 2, "''") != 0) return;
          ++column;  // '' is a quote inside the text
        }
      }
    fail(place, "malformed YAML: the quoted text is not closed");
  }

  void open(Node::Kind kind, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    const Place place = place_of(file_, mark);
    if (!tag.empty() && tag != "?" && tag != "!")
      fail(place, "the tag '" + tag + "' is not supported in a suite");
    if (stack_.size() >= kMaxDepth)
      fail(place, "nested deeper than " + std::to_string(kMaxDepth) + " levels");
    auto n = std::make_shared<Node>();
    n->kind = kind;
    n->place = place;
    stack_.push_back({n, anchor, false, false, {}, {}, {}, {}});
  }

  void close() {
    Frame frame = std::move(stack_.back());
    stack_.pop_back();
    for (const auto& [from, place] : frame.merges) merge(frame, *from, place);
    add(frame.node, frame.anchor);
  }

  void merge(Frame& into, const Node& from, const Place& place, bool within_list = false) {
    if (from.is_list() && !within_list) {
      for (const NodePtr& item : from.items) merge(into, *item, place, true);
      return;
    }
    if (!from.is_map()) fail(place, "a merge key `<<` wants a map or a list of maps, not " + from.describe());
    for (const Entry& e : from.entries)
      if (into.lines.emplace(e.key, e.key_place.line).second) into.node->entries.push_back(e);
  }

  void add(const std::shared_ptr<Node>& n, YAML::anchor_t anchor) {
    if (anchor != YAML::NullAnchor) anchors_[anchor] = n;
    attach(n, n->place);
  }

  void attach(const NodePtr& n, const Place& place) {
    // Sizes only add up towards the root, so the first node that reaches the limit is caught here.
    if (stack_.empty()) {
      root_ = n;
      return;
    }
    Frame& top = stack_.back();
    Node& parent = *top.node;
    if (parent.is_map() && !top.have_key) {
      if (!n->is_scalar()) fail(place, "a key must be a word, not " + n->describe());
      if (n->is_null() && n->text.empty()) fail(place, "an empty key");
      top.key = n->text;
      top.key_place = place;
      top.key_is_merge = !n->quoted && n->text == "<<";
      if (!top.key_is_merge) {
        const auto [first, fresh] = top.lines.emplace(top.key, place.line);
        if (!fresh)
          fail(place, "duplicate key '" + top.key + "'; it was set in line " + std::to_string(first->second));
      }
      top.have_key = true;
      return;
    }
    parent.size += n->size;
    parent.height = std::max(parent.height, n->height + 1);
    if (parent.size > kMaxNodes)
      fail(place, "the aliases expand to more than " + std::to_string(kMaxNodes) + " nodes");
    if (static_cast<int>(stack_.size()) + n->height > kMaxDepth)
      fail(place, "nested deeper than " + std::to_string(kMaxDepth) + " levels");
    if (parent.is_list()) {
      parent.items.push_back(n);
    } else {
      if (top.key_is_merge)
        top.merges.emplace_back(n, place);
      else
        parent.entries.push_back({top.key, top.key_place, n});
      top.have_key = false;
    }
  }

  std::string file_;
  std::vector<std::string> lines_;
  int documents_ = 0;
  std::vector<Frame> stack_;
  std::map<YAML::anchor_t, NodePtr> anchors_;
  NodePtr root_;
};

}  // namespace

const Entry* Node::find(const std::string& key) const {
  for (const Entry& e : entries)
    if (e.key == key) return &e;
  return nullptr;
}

std::string Node::describe() const {
  if (is_list()) return "a list";
  if (is_map()) return "a map";
  if (value.is_null()) return "nothing";
  if (value.is_bool()) return value.str();
  if (value.is_number()) return "the number " + value.str();
  return "the text '" + text + "'";
}

Value typed(const std::string& text, std::string& error) {
  if (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL") return {};
  if (text == "true" || text == "True" || text == "TRUE") return Value(true);
  if (text == "false" || text == "False" || text == "FALSE") return Value(false);
  const std::string_view digits = std::string_view(text).substr(text[0] == '-' || text[0] == '+' ? 1 : 0);
  if (digits_only(digits)) {
    int64_t i = 0;
    const char* first = text.data() + (text[0] == '+' ? 1 : 0);
    const auto result = std::from_chars(first, text.data() + text.size(), i);
    if (result.ec == std::errc::result_out_of_range)
      error = "the whole number " + text + " does not fit into 64 bits";
    return Value(i);
  }
  if (looks_like_float(text)) {
    double d = 0;
    const char* first = text.data() + (text[0] == '+' ? 1 : 0);
    const auto result = std::from_chars(first, text.data() + text.size(), d);
    // from_chars leaves d alone both when the number is too large and when it is too small; strtod tells them
    // apart.
    if (result.ec == std::errc::result_out_of_range) d = std::strtod(text.c_str(), nullptr);
    if (std::isinf(d)) error = "the number " + text + " does not fit into a double";
    return Value(d);
  }
  if (text == ".nan" || text == ".NaN" || text == ".NAN" || text == ".inf" || text == ".Inf" ||
      text == ".INF" || text == "-.inf" || text == "+.inf" || text == "-.Inf" || text == "-.INF")
    error = text + ": only finite numbers make sense in a suite";
  return Value(text);
}

Value to_value(const Node& node, ErrorList& errors) {
  if (node.is_scalar()) return node.value;
  if (node.is_list()) {
    Value::List list;
    for (const NodePtr& item : node.items) list.push_back(to_value(*item, errors));
    return Value(std::move(list));
  }
  errors.add(node.place, "a value or a list of values is wanted, not a map");
  return {};
}

NodePtr parse(const std::string& given, const std::string& file) {
  check_bytes(given, file);
  // A byte order mark is no part of the text: yaml-cpp would count it into the first column.
  const std::string text = given.rfind("\xef\xbb\xbf", 0) == 0 ? given.substr(3) : given;
  Builder builder(text, file);
  try {
    std::istringstream in(text);
    YAML::Parser parser(in);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& e) {
    Place place{file, 1, 1};
    if (!e.mark.is_null()) place = place_of(file, e.mark);
    fail(place, "malformed YAML: " + e.msg);
  }
  if (!builder.root() || builder.root()->is_null()) fail({file, 1, 1}, "the file is empty");
  return builder.root();
}

NodePtr read(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code ec;
  const fs::file_status status = fs::status(path, ec);
  if (!fs::exists(status)) throw DataError("cannot read '" + path + "': there is no such file");
  if (fs::is_directory(status)) throw DataError("cannot read '" + path + "': it is a directory");
  if (fs::is_regular_file(status)) {
    const auto bytes = fs::file_size(path, ec);
    if (!ec && bytes > kMaxBytes)
      throw DataError("'" + path + "' has " + std::to_string(bytes) + " bytes; a suite file may have " +
                      std::to_string(kMaxBytes));
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) throw DataError("cannot read '" + path + "': permission denied");
  // Pipes and devices have no size: one byte above the limit is enough to know.
  std::string text(kMaxBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.size() > kMaxBytes)
    throw DataError("'" + path + "' has more than " + std::to_string(kMaxBytes) +
                    " bytes, the most a suite file may have");
  return parse(text, path);
}

NodePtr make_scalar(const Place& place, Value value) {
  auto n = std::make_shared<Node>();
  n->place = place;
  n->text = value.str();
  n->value = std::move(value);
  return n;
}

std::shared_ptr<Node> make_map(const Place& place) {
  auto n = std::make_shared<Node>();
  n->kind = Node::Kind::map;
  n->place = place;
  return n;
}

}  // namespace attnbench::yaml

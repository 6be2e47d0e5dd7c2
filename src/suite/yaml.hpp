// A YAML file as a tree of nodes that know their place. Strict where YAML is lax; knows nothing of suites.
//
// Anchors, aliases and merge keys (`<<`) work; aliased nodes are shared, never copied, and their expanded
// size is counted, so a file that would unfold into billions of nodes is refused for what it is. Refused as
// well, each with its place: duplicate keys, keys that are not scalars, several documents, tags other than
// !!str, tabs in the indentation, bytes that are not UTF-8, NUL, numbers beyond 64 bits.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "methods/value.hpp"
#include "suite/errors.hpp"

namespace attnbench::yaml {

/// A suite written by hand is a few KB; the largest generated one imaginable stays far below these.
inline constexpr size_t kMaxBytes = 1 << 20;
inline constexpr size_t kMaxNodes = 100000;  ///< with every alias expanded
inline constexpr int kMaxDepth = 64;

struct Node;
using NodePtr = std::shared_ptr<const Node>;

struct Entry {
  std::string key;
  Place key_place;
  NodePtr value;
};

struct Node {
  enum class Kind : uint8_t { scalar, list, map };
  Kind kind = Kind::scalar;
  Place place;
  std::string text;  ///< scalar: as written, without quotes
  bool quoted = false;
  /// The column of the scalar's first character when `text` stands in the file as it is (one line, no
  /// escapes), so that an error inside it can be pointed at; else 0.
  int text_column = 0;
  Value value;  ///< scalar: typed by the YAML 1.2 core rules
  std::vector<NodePtr> items;
  std::vector<Entry> entries;  ///< in the order of the file, merged keys after a map's own
  size_t size = 1;             ///< nodes of the subtree, aliases expanded
  int height = 1;

  bool is_scalar() const { return kind == Kind::scalar; }
  bool is_list() const { return kind == Kind::list; }
  bool is_map() const { return kind == Kind::map; }
  bool is_null() const { return is_scalar() && value.is_null(); }
  const Entry* find(const std::string& key) const;
  /// "a list", "a map", "the text \"64\"", "the number 3": for messages.
  std::string describe() const;
};

/// Parses one document; throws SuiteErrors. `file` is what places show.
NodePtr parse(const std::string& text, const std::string& file);
/// Reads and parses; refuses files above kMaxBytes before reading them.
NodePtr read(const std::string& path);

/// A plain scalar's value by the YAML 1.2 core rules; `error` gets a sentence when it is a number that does
/// not fit.
Value typed(const std::string& text, std::string& error);
/// The value of a scalar or of a list of them; maps are refused into `errors`.
Value to_value(const Node& node, ErrorList& errors);

NodePtr make_scalar(const Place& place, Value value);
std::shared_ptr<Node> make_map(const Place& place);

}  // namespace attnbench::yaml

// Typed method parameters: specification, validation and access.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "methods/value.hpp"

namespace attnbench {

struct Problem;

struct ParamSpec {
  enum class Type : uint8_t { integer, number, boolean, choice, list, text };
  std::string name;
  /// text: any words, such as a path. An empty text is a value.
  Type type = Type::integer;
  Value default_value;  ///< null: none, or taken from the problem
  std::string meaning;
  std::optional<double> min, max;    ///< inclusive, for integer and number (and list elements)
  std::vector<std::string> choices;  ///< for choice; for list, integer: words that may stand instead of one
  bool flags = false;                ///< for list: elements are true and false, not numbers
  bool nested = false;    ///< for list: elements may be lists of numbers themselves ("[[12, 3], [13, 4]]")
  bool of_words = false;  ///< for list: elements are words of `choices`, each at most once
  bool of_texts = false;  ///< for list: elements are texts
  bool nullable = false;  ///< null is a value ("qk_scale: null")
  /// The problem extent this parameter repeats ("channels", "heads", "grid[0]", "size[1]", "grid[1:]"
  /// (product of the axes from 1 on), "head_dim", "causal", …). Left out, it takes the problem's value;
  /// given, it must agree with it.
  std::string from_problem;
};

/// Descriptions in one line each. A null default makes the parameter nullable; `from_problem` is the field
/// above.
namespace spec {
ParamSpec param(std::string name, ParamSpec::Type type, Value default_value, std::string meaning);
ParamSpec param(std::string name, ParamSpec::Type type, Value default_value, std::optional<double> min,
                std::string meaning);
ParamSpec param(std::string name, ParamSpec::Type type, Value default_value, std::optional<double> min,
                std::optional<double> max, std::string meaning);
ParamSpec integer(std::string name, Value default_value, double min, std::string meaning,
                  std::string from_problem = {});
ParamSpec number(std::string name, Value default_value, double min, std::string meaning);
ParamSpec number(std::string name, Value default_value, double min, double max, std::string meaning);
ParamSpec share(std::string name, double default_value, std::string meaning);  ///< a number in [0, 1]
ParamSpec boolean(std::string name, bool default_value, std::string meaning);
ParamSpec list(std::string name, Value default_value, std::string meaning);
ParamSpec choice(std::string name, std::vector<std::string> words,
                 std::string meaning);  ///< the first word is the default
}  // namespace spec

/// A complete, valid set of values. Built by resolve_params only.
class Params {
 public:
  int64_t integer(const std::string& name) const;
  double number(const std::string& name) const;
  bool boolean(const std::string& name) const;
  const std::string& choice(const std::string& name) const;
  const std::string& text(const std::string& name) const;
  const Value& value(const std::string& name) const;
  bool is_null(const std::string& name) const { return value(name).is_null(); }
  const std::map<std::string, Value>& all() const { return values_; }

 private:
  friend Params resolve_params(const std::string&, const std::vector<ParamSpec>&,
                               const std::map<std::string, Value>&, const Problem&);
  std::map<std::string, Value> values_;
};

/// Fills defaults, converts (an int where a number is wanted), checks types, ranges and agreement with the
/// problem. Throws UsageError listing every violation, a line each; unknown names get the nearest valid one.
Params resolve_params(const std::string& method_id, const std::vector<ParamSpec>& specs,
                      const std::map<std::string, Value>& given, const Problem& problem);

/// The closest of `words` to `word` by edit distance, or empty when nothing is near.
std::string nearest_word(const std::string& word, const std::vector<std::string>& words);

}  // namespace attnbench

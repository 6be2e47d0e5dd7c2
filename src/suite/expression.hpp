// The small expression language of suites: one tokenizer, one parser, shared by `when` and by claims.
//
//   or  and  not  == != < <= > >=  + -  * / %  unary -  ( )  numbers  "text"  'text'  true false
//   names with dots and indexes (problem.grid[0]), functions (log, min, max, abs), and in claims functions of
//   a case, whose first argument is a case name, optionally bound to axis values: time(hilo[batch=64]).
//
// There is no assignment, no loop and no access to anything outside: it is not a scripting language.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/error.hpp"
#include "methods/value.hpp"

namespace attnbench {

/// A case as an expression names it.
struct CaseRef {
  std::string name;
  std::map<std::string, Value> axes;  ///< as written: "batch" or "problem.batch"
  std::string str() const;            ///< "hilo[batch=64]"
};

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind : uint8_t { literal, name, call, unary, binary };
  Kind kind = Kind::literal;
  int offset = 0;  ///< bytes from the start of the text, for messages
  Value literal;
  /// name: "problem.grid[0]"; call: the function; unary: "-", "not"; binary: "+", "and", "<=", …
  std::string word;
  bool has_case = false;  ///< call: of a function of a case
  CaseRef of;
  std::vector<ExpressionPtr> arguments;  ///< operands or arguments (a case reference is not among them)
};

/// Wrong text or wrong types, with the offset inside the text.
class ExpressionError : public UsageError {
 public:
  ExpressionError(int offset, const std::string& message) : UsageError(message), offset_(offset) {}
  int offset() const { return offset_; }

 private:
  int offset_;
};

/// Functions of a case by name, with the number of further arguments; empty for `when`.
using CaseFunctions = std::map<std::string, int>;

ExpressionPtr parse_expression(const std::string& text, const CaseFunctions& case_functions = {});

/// Calls `visit` for every node, parents first.
void visit(const Expression& e, const std::function<void(const Expression&)>& visit);

/// Evaluates to a value; integers stay integers (a division that has a remainder gives a double). `lookup`
/// gives a name's value or throws ExpressionError. Functions of cases are not evaluated here.
using NameLookup = std::function<Value(const std::string& name, int offset)>;
Value evaluate(const Expression& e, const NameLookup& lookup);
/// As above, but the result must be true or false.
bool evaluate_condition(const Expression& e, const NameLookup& lookup);

}  // namespace attnbench

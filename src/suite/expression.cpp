#include "suite/expression.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "methods/params.hpp"
#include "suite/yaml.hpp"

namespace attnbench {

namespace {

// Deep enough for anything readable, shallow enough for the stack.
constexpr int kMaxExpressionDepth = 100;
// Chains such as a + b + … make trees as deep as they are long; this bounds them too.
constexpr size_t kMaxExpressionBytes = 2000;

const std::map<std::string, std::pair<int, int>>& functions() {  // fewest and most arguments
  static const std::map<std::string, std::pair<int, int>> f{
      {"log", {1, 1}}, {"abs", {1, 1}}, {"min", {2, 8}}, {"max", {2, 8}}};
  return f;
}

bool word_start(char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool word_char(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

class Parser {
 public:
  Parser(const std::string& text, const CaseFunctions& case_functions)
      : s_(text), case_functions_(case_functions) {}

  ExpressionPtr all() {
    if (s_.size() > kMaxExpressionBytes)
      fail("the expression is longer than " + std::to_string(kMaxExpressionBytes) + " characters");
    skip();
    if (at_ >= s_.size()) fail("an expression is wanted, and there is none");
    ExpressionPtr e = disjunction();
    if (at_ < s_.size()) {
      if (s_[at_] == '=') fail("'=' is no comparison; write '=='");
      if (s_.compare(at_, 2, "&&") == 0) fail("'&&' is written 'and'");
      if (s_.compare(at_, 2, "||") == 0) fail("'||' is written 'or'");
      fail("unexpected '" + s_.substr(at_, 12) + "'");
    }
    return e;
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw ExpressionError(static_cast<int>(at_), message);
  }
  void skip() {
    while (at_ < s_.size() && std::isspace(static_cast<unsigned char>(s_[at_]))) ++at_;
  }
  bool take(std::string_view token) {
    if (s_.compare(at_, token.size(), token) != 0) return false;
    // A word ends where the token ends: "order" does not begin with "or".
    if (word_char(token.back()) && at_ + token.size() < s_.size() && word_char(s_[at_ + token.size()]))
      return false;
    at_ += token.size();
    skip();
    return true;
  }
  void want(std::string_view token, const char* why) {
    if (!take(token))
      fail("'" + std::string(token) + "' is wanted " + why +
           (at_ < s_.size() ? ", not '" + s_.substr(at_, 12) + "'" : ""));
  }

  ExpressionPtr node(Expression::Kind kind, size_t offset, std::string word) const {
    auto e = std::make_unique<Expression>();
    e->kind = kind;
    e->offset = static_cast<int>(offset);
    e->word = std::move(word);
    return e;
  }
  ExpressionPtr binary(size_t offset, const char* op, ExpressionPtr a, ExpressionPtr b) const {
    ExpressionPtr e = node(Expression::Kind::binary, offset, op);
    e->arguments.push_back(std::move(a));
    e->arguments.push_back(std::move(b));
    return e;
  }

  struct Depth {
    explicit Depth(Parser& p) : p(p) {
      if (++p.depth_ > kMaxExpressionDepth) p.fail("the expression is nested too deeply");
    }
    ~Depth() { --p.depth_; }
    Parser& p;
  };

  ExpressionPtr disjunction() {
    ExpressionPtr e = conjunction();
    for (size_t at = at_; take("or"); at = at_) e = binary(at, "or", std::move(e), conjunction());
    return e;
  }
  ExpressionPtr conjunction() {
    ExpressionPtr e = negation();
    for (size_t at = at_; take("and"); at = at_) e = binary(at, "and", std::move(e), negation());
    return e;
  }
  ExpressionPtr negation() {
    const Depth depth(*this);
    const size_t at = at_;
    if (!take("not")) return comparison();
    ExpressionPtr e = node(Expression::Kind::unary, at, "not");
    e->arguments.push_back(negation());
    return e;
  }
  const char* comparison_operator() {
    for (const char* op : {"==", "!=", "<=", ">=", "<", ">"})
      if (take(op)) return op;
    return nullptr;
  }
  ExpressionPtr comparison() {
    ExpressionPtr e = sum();
    size_t at = at_;
    if (const char* op = comparison_operator()) {
      e = binary(at, op, std::move(e), sum());
      at = at_;
      if (comparison_operator()) {
        at_ = at;
        fail("comparisons do not chain; write 'a < b and b < c'");
      }
    }
    return e;
  }
  ExpressionPtr sum() {
    ExpressionPtr e = product();
    for (;;) {
      const size_t at = at_;
      if (take("+"))
        e = binary(at, "+", std::move(e), product());
      else if (take("-"))
        e = binary(at, "-", std::move(e), product());
      else
        return e;
    }
  }
  ExpressionPtr product() {
    ExpressionPtr e = sign();
    for (;;) {
      const size_t at = at_;
      if (take("*"))
        e = binary(at, "*", std::move(e), sign());
      else if (take("/"))
        e = binary(at, "/", std::move(e), sign());
      else if (take("%"))
        e = binary(at, "%", std::move(e), sign());
      else
        return e;
    }
  }
  ExpressionPtr sign() {
    const Depth depth(*this);
    const size_t at = at_;
    if (!take("-")) return primary();
    ExpressionPtr e = node(Expression::Kind::unary, at, "-");
    e->arguments.push_back(sign());
    return e;
  }

  ExpressionPtr primary() {
    if (at_ >= s_.size()) fail("the expression ends where a value is wanted");
    const size_t at = at_;
    const char c = s_[at_];
    if (take("(")) {
      const Depth depth(*this);
      ExpressionPtr e = disjunction();
      want(")", "to close the parenthesis");
      return e;
    }
    if (c == '"' || c == '\'') {
      ExpressionPtr e = node(Expression::Kind::literal, at, "");
      e->literal = Value(quoted());
      return e;
    }
    if (std::isdigit(static_cast<unsigned char>(c)) || c == '.') return number();
    if (word_start(c)) return word();
    fail("a value is wanted, not '" + s_.substr(at_, 12) + "'");
  }

  std::string quoted() {
    const char quote = s_[at_];
    const size_t end = s_.find(quote, at_ + 1);
    if (end == std::string::npos) fail("the text is not closed");
    std::string text = s_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    skip();
    return text;
  }

  ExpressionPtr number() {
    const size_t at = at_;
    const auto digits = [this] {
      while (at_ < s_.size() && std::isdigit(static_cast<unsigned char>(s_[at_]))) ++at_;
    };
    digits();
    if (at_ < s_.size() && s_[at_] == '.') ++at_, digits();
    if (at_ < s_.size() && (s_[at_] == 'e' || s_[at_] == 'E')) {
      ++at_;
      if (at_ < s_.size() && (s_[at_] == '-' || s_[at_] == '+')) ++at_;
      digits();
    }
    while (at_ < s_.size() && word_char(s_[at_])) ++at_;  // "3x" is one wrong number, not two tokens
    const std::string text = s_.substr(at, at_ - at);
    std::string error;
    ExpressionPtr e = node(Expression::Kind::literal, at, "");
    e->literal = yaml::typed(text, error);
    if (error.empty() && !e->literal.is_number()) error = "'" + text + "' is not a number";
    if (!error.empty()) throw ExpressionError(static_cast<int>(at), error);
    skip();
    return e;
  }

  ExpressionPtr word() {
    const size_t at = at_;
    while (at_ < s_.size() && (word_char(s_[at_]) || s_[at_] == '.')) ++at_;
    std::string text = s_.substr(at, at_ - at);
    skip();
    if (text == "true" || text == "false") {
      ExpressionPtr e = node(Expression::Kind::literal, at, "");
      e->literal = Value(text == "true");
      return e;
    }
    if (text == "and" || text == "or" || text == "not") {
      at_ = at;
      fail("a value is wanted, not '" + text + "'");
    }
    if (take("(")) return call(at, text);
    while (take("[")) {
      const size_t begin = at_;
      while (at_ < s_.size() && std::isdigit(static_cast<unsigned char>(s_[at_]))) ++at_;
      if (at_ == begin) fail("an index is a whole number, as in problem.grid[0]");
      text += "[" + s_.substr(begin, at_ - begin) + "]";
      skip();
      want("]", "after the index");
    }
    return node(Expression::Kind::name, at, text);
  }

  ExpressionPtr call(size_t at, const std::string& function) {
    const Depth depth(*this);
    ExpressionPtr e = node(Expression::Kind::call, at, function);
    int least = 0, most = 0;
    if (const auto of_case = case_functions_.find(function); of_case != case_functions_.end()) {
      e->has_case = true;
      e->of = case_reference();
      least = most = of_case->second;
      if (least > 0) want(",", "after the case");
    } else if (const auto f = functions().find(function); f != functions().end()) {
      std::tie(least, most) = f->second;
    } else {
      std::vector<std::string> names;
      for (const auto& [n, _] : functions()) names.push_back(n);
      for (const auto& [n, _] : case_functions_) names.push_back(n);
      const std::string near = nearest_word(function, names);
      std::string all;
      for (const std::string& n : names) all += (all.empty() ? "" : ", ") + n;
      throw ExpressionError(static_cast<int>(at),
                            "unknown function '" + function + "'" +
                                (near.empty() ? "; there are " + all : "; did you mean '" + near + "'?"));
    }
    if (most > 0) {
      do e->arguments.push_back(disjunction());
      while (take(","));
    }
    want(")", "to close the arguments");
    const int n = static_cast<int>(e->arguments.size());
    if (n < least || n > most)
      throw ExpressionError(static_cast<int>(at), "'" + function + "' takes " + std::to_string(least) +
                                                      (most > least ? " to " + std::to_string(most) : "") +
                                                      " arguments, not " + std::to_string(n));
    return e;
  }

  /// Case names may hold '-', '.', '/' and '=', so they are read as they stand, up to what ends them.
  CaseRef case_reference() {
    CaseRef of;
    const size_t at = at_;
    if (at_ < s_.size() && (s_[at_] == '"' || s_[at_] == '\'')) {
      of.name = quoted();
    } else {
      const size_t end = std::min(s_.find_first_of(",)[(", at_), s_.size());
      of.name = s_.substr(at_, end - at_);
      at_ = end;
      while (!of.name.empty() && std::isspace(static_cast<unsigned char>(of.name.back()))) of.name.pop_back();
    }
    if (of.name.empty()) throw ExpressionError(static_cast<int>(at), "the name of a case is wanted");
    if (take("[")) {
      do {
        const size_t begin = at_;
        const size_t end = std::min(s_.find_first_of("=,])", at_), s_.size());
        std::string key = s_.substr(begin, end - begin);
        while (!key.empty() && std::isspace(static_cast<unsigned char>(key.back()))) key.pop_back();
        at_ = end;
        if (key.empty()) fail("an axis is wanted, as in hilo[batch=64]");
        want("=", "after the axis");
        if (!of.axes.emplace(key, axis_value()).second)
          throw ExpressionError(static_cast<int>(begin), "the axis '" + key + "' is bound twice");
      } while (take(","));
      want("]", "after the axis values");
    }
    return of;
  }
  Value axis_value() {
    if (at_ < s_.size() && (s_[at_] == '"' || s_[at_] == '\'')) return Value(quoted());
    const size_t at = at_;
    if (take("[")) {
      Value::List list;
      do list.push_back(axis_value());
      while (take(","));
      want("]", "after the list");
      return Value(std::move(list));
    }
    const size_t end = std::min(s_.find_first_of(",])", at_), s_.size());
    std::string text = s_.substr(at, end - at);
    at_ = end;
    while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
    std::string error;
    Value v = yaml::typed(text, error);
    if (v.is_null()) error = "an axis value is wanted";
    if (!error.empty()) throw ExpressionError(static_cast<int>(at), error);
    return v;
  }

  const std::string& s_;
  const CaseFunctions& case_functions_;
  size_t at_ = 0;
  int depth_ = 0;
};

[[noreturn]] void bad(const Expression& e, const std::string& message) {
  throw ExpressionError(e.offset, message);
}

std::string kind_of(const Value& v) {
  if (v.is_null()) return "nothing";
  if (v.is_bool()) return v.str();
  if (v.is_number()) return "the number " + v.str();
  if (v.is_string()) return "the text '" + v.str() + "'";
  return "the list " + v.str();
}

bool truth(const Expression& e, const Value& v) {
  if (!v.is_bool()) bad(e, "true or false is wanted here, not " + kind_of(v));
  return v.as_bool();
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return a.as_double() == b.as_double();
  return a == b;
}

Value arithmetic(const Expression& e, const Value& a, const Value& b) {
  if (!a.is_number() || !b.is_number())
    bad(e, "'" + e.word + "' works on numbers, not on " + kind_of(a.is_number() ? b : a));
  const char op = e.word[0];
  if (a.is_int() && b.is_int()) {
    const int64_t x = a.as_int(), y = b.as_int();
    int64_t r = 0;
    if (op == '+' && !__builtin_add_overflow(x, y, &r)) return Value(r);
    if (op == '-' && !__builtin_sub_overflow(x, y, &r)) return Value(r);
    if (op == '*' && !__builtin_mul_overflow(x, y, &r)) return Value(r);
    if (op == '/' || op == '%') {
      if (y == 0) bad(e, "division by zero");
      if (y == -1) {  // the one quotient that does not fit
        if (op == '%') return Value(0);
        if (!__builtin_sub_overflow(int64_t{0}, x, &r)) return Value(r);
      } else {
        if (op == '%') return Value(x % y);
        if (x % y == 0) return Value(x / y);
        return Value(static_cast<double>(x) / static_cast<double>(y));
      }
    }
    bad(e, "'" + a.str() + " " + e.word + " " + b.str() + "' does not fit into 64 bits");
  }
  const double x = a.as_double(), y = b.as_double();
  if (op == '+') return Value(x + y);
  if (op == '-') return Value(x - y);
  if (op == '*') return Value(x * y);
  if (y == 0) bad(e, "division by zero");
  return Value(op == '/' ? x / y : std::fmod(x, y));
}

Value compare(const Expression& e, const Value& a, const Value& b) {
  if (e.word == "==") return Value(equal(a, b));
  if (e.word == "!=") return Value(!equal(a, b));
  int order = 0;
  if (a.is_number() && b.is_number())
    order = a.as_double() < b.as_double() ? -1 : a.as_double() > b.as_double() ? 1 : 0;
  else if (a.is_string() && b.is_string())
    order = a.as_string().compare(b.as_string());
  else
    bad(e, "'" + e.word + "' cannot compare " + kind_of(a) + " with " + kind_of(b));
  if (e.word == "<") return Value(order < 0);
  if (e.word == "<=") return Value(order <= 0);
  if (e.word == ">") return Value(order > 0);
  return Value(order >= 0);
}

Value call(const Expression& e, const NameLookup& lookup) {
  if (e.has_case) bad(e, "'" + e.word + "' of a case has no value here");
  std::vector<Value> a;
  for (const ExpressionPtr& p : e.arguments) {
    a.push_back(evaluate(*p, lookup));
    if (!a.back().is_number()) bad(*p, "'" + e.word + "' works on numbers, not on " + kind_of(a.back()));
  }
  if (e.word == "log") {
    if (!(a[0].as_double() > 0)) bad(e, "the logarithm of " + a[0].str());
    return Value(std::log(a[0].as_double()));
  }
  if (e.word == "abs") {
    if (a[0].is_double()) return Value(std::fabs(a[0].as_double()));
    if (a[0].as_int() == INT64_MIN) bad(e, "the absolute value does not fit into 64 bits");
    return Value(std::abs(a[0].as_int()));
  }
  Value best = a[0];
  for (const Value& v : a)
    if (e.word == "min" ? v.as_double() < best.as_double() : v.as_double() > best.as_double()) best = v;
  return best;
}

}  // namespace

std::string CaseRef::str() const {
  if (axes.empty()) return name;
  std::string s;
  for (const auto& [k, v] : axes) s += (s.empty() ? "" : ", ") + k + "=" + v.str();
  return name + "[" + s + "]";
}

ExpressionPtr parse_expression(const std::string& text, const CaseFunctions& case_functions) {
  return Parser(text, case_functions).all();
}

void visit(const Expression& e, const std::function<void(const Expression&)>& f) {
  f(e);
  for (const ExpressionPtr& a : e.arguments) visit(*a, f);
}

Value evaluate(const Expression& e, const NameLookup& lookup) {
  switch (e.kind) {
    case Expression::Kind::literal:
      return e.literal;
    case Expression::Kind::name:
      return lookup(e.word, e.offset);
    case Expression::Kind::call:
      return call(e, lookup);
    case Expression::Kind::unary: {
      const Value v = evaluate(*e.arguments[0], lookup);
      if (e.word == "not") return Value(!truth(*e.arguments[0], v));
      if (!v.is_number()) bad(e, "'-' works on numbers, not on " + kind_of(v));
      if (v.is_double()) return Value(-v.as_double());
      if (v.as_int() == INT64_MIN) bad(e, "the negation does not fit into 64 bits");
      return Value(-v.as_int());
    }
    case Expression::Kind::binary: {
      const Expression &left = *e.arguments[0], &right = *e.arguments[1];
      if (e.word == "and")
        return Value(truth(left, evaluate(left, lookup)) && truth(right, evaluate(right, lookup)));
      if (e.word == "or")
        return Value(truth(left, evaluate(left, lookup)) || truth(right, evaluate(right, lookup)));
      const Value a = evaluate(left, lookup), b = evaluate(right, lookup);
      const char c = e.word[0];
      return c == '=' || c == '!' || c == '<' || c == '>' ? compare(e, a, b) : arithmetic(e, a, b);
    }
  }
  return {};
}

bool evaluate_condition(const Expression& e, const NameLookup& lookup) {
  return truth(e, evaluate(e, lookup));
}

}  // namespace attnbench

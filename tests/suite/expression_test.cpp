#include "suite/expression.hpp"

#include "tests/catch.hpp"

using namespace attnbench;

namespace {

Value lookup(const std::string& name, int offset) {
  if (name == "n") return Value(14);
  if (name == "x.y") return Value(0.5);
  if (name == "x.grid[1]") return Value(7);
  if (name == "word") return Value("cpu");
  if (name == "yes") return Value(true);
  if (name == "order") return Value(3);
  throw ExpressionError(offset, "unknown '" + name + "'");
}

Value eval(const std::string& text) { return evaluate(*parse_expression(text), lookup); }

std::string error(const std::string& text, const CaseFunctions& f = {}) {
  try {
    evaluate(*parse_expression(text, f), lookup);
  } catch (const ExpressionError& e) {
    return std::to_string(e.offset()) + ": " + e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("arithmetic binds as usual") {
  CHECK(eval("1 + 2 * 3") == Value(7));
  CHECK(eval("(1 + 2) * 3") == Value(9));
  CHECK(eval("7 - 2 - 1") == Value(4));
  CHECK(eval("8 / 2 / 2") == Value(2));
  CHECK(eval("7 / 2") == Value(3.5));
  CHECK(eval("-7 % 4") == Value(-3));
  CHECK(eval("- -2") == Value(2));
  CHECK(eval("2 * -3") == Value(-6));
  CHECK(eval("n % 7") == Value(0));
  CHECK(eval("x.grid[1] + 1") == Value(8));
  CHECK(eval("x.grid[ 1 ] + 1") == Value(8));
  CHECK(eval("1e2 + .5") == Value(100.5));
  CHECK(eval("5.5 % 2") == Value(1.5));
  CHECK(eval("min(3, 1, 2) + max(1, 2.5)") == Value(3.5));
  CHECK(eval("abs(-3)") == Value(3));
  CHECK(eval("log(1)") == Value(0.0));
}

TEST_CASE("comparison and logic") {
  CHECK(eval("n == 14.0") == Value(true));
  CHECK(eval("n != 14") == Value(false));
  CHECK(eval("1 < 2 and 2 <= 2 and 3 > 2 and 3 >= 3") == Value(true));
  CHECK(eval("word == 'cpu'") == Value(true));
  CHECK(eval("word == \"cuda\"") == Value(false));
  CHECK(eval("word == 3") == Value(false));
  CHECK(eval("'a' < 'b'") == Value(true));
  CHECK(eval("not yes or yes") == Value(true));
  CHECK(eval("not (yes or yes)") == Value(false));
  CHECK(eval("yes or yes and not yes") == Value(true));
  CHECK(eval("order == 3 or nothing") == Value(true));  // a word that begins with an operator; short circuit
  CHECK(eval("n > 100 and nothing > 1") == Value(false));  // short circuit
  CHECK(eval("true") == Value(true));
  CHECK(eval("not 1 == 2") == Value(true));
}

TEST_CASE("errors say where and what") {
  CHECK_THAT(error(""), ContainsSubstring("0: an expression is wanted"));
  CHECK_THAT(error("1 +"), ContainsSubstring("3: the expression ends where a value is wanted"));
  CHECK_THAT(error("(1"), ContainsSubstring("2: ')' is wanted"));
  CHECK_THAT(error("1 2"), ContainsSubstring("2: unexpected '2'"));
  CHECK_THAT(error("n = 1"), ContainsSubstring("2: '=' is no comparison; write '=='"));
  CHECK_THAT(error("yes && yes"), ContainsSubstring("4: '&&' is written 'and'"));
  CHECK_THAT(error("yes || yes"), ContainsSubstring("'||' is written 'or'"));
  CHECK_THAT(error("1 < n < 3"), ContainsSubstring("6: comparisons do not chain"));
  CHECK_THAT(error("n % 0"), ContainsSubstring("2: division by zero"));
  CHECK_THAT(error("n / 0.0"), ContainsSubstring("division by zero"));
  CHECK_THAT(error("9223372036854775807 + 1"), ContainsSubstring("does not fit into 64 bits"));
  CHECK_THAT(error("(-9223372036854775807 - 1) / -1"), ContainsSubstring("does not fit into 64 bits"));
  CHECK(eval("(-9223372036854775807 - 1) % -1") == Value(0));
  CHECK_THAT(error("99999999999999999999"), ContainsSubstring("does not fit into 64 bits"));
  CHECK_THAT(error("word + 1"), ContainsSubstring("works on numbers, not on the text 'cpu'"));
  CHECK_THAT(error("word < 1"), ContainsSubstring("cannot compare"));
  CHECK_THAT(error("not 1"), ContainsSubstring("4: true or false is wanted here, not the number 1"));
  CHECK_THAT(error("1 and yes"), ContainsSubstring("0: true or false is wanted here"));
  CHECK_THAT(error("'open"), ContainsSubstring("the text is not closed"));
  CHECK_THAT(error("3x"), ContainsSubstring("'3x' is not a number"));
  CHECK_THAT(error("@"), ContainsSubstring("a value is wanted, not '@'"));
  CHECK_THAT(error("maxx(1, 2)"), ContainsSubstring("did you mean 'max'?"));
  CHECK_THAT(error("max(1)"), ContainsSubstring("'max' takes 2 to 8 arguments, not 1"));
  CHECK_THAT(error("log(0)"), ContainsSubstring("the logarithm of 0"));
  CHECK_THAT(error("system('x')"), ContainsSubstring("unknown function"));
  CHECK_THAT(error("nothing"), ContainsSubstring("0: unknown 'nothing'"));
  CHECK_THAT(error("x.grid[a]"), ContainsSubstring("an index is a whole number"));
  CHECK_THAT(error(std::string(500, '(') + "1" + std::string(500, ')')),
             ContainsSubstring("nested too deeply"));
  CHECK_THAT(error(std::string(500, '-') + "1"), ContainsSubstring("nested too deeply"));
  std::string chain = "1";
  for (int i = 0; i < 2000; ++i) chain += "+1";
  CHECK_THAT(error(chain), ContainsSubstring("longer than 2000"));
}

TEST_CASE("functions of cases read names as they stand") {
  const CaseFunctions f{{"time", 0}, {"scalar", 1}};
  ExpressionPtr e =
      parse_expression("time(a-b.c/batch=64) / time( d [batch=64, grid=[14, 14], mode='x'] )", f);
  REQUIRE(e->word == "/");
  CHECK(e->arguments[0]->of.name == "a-b.c/batch=64");
  const CaseRef& d = e->arguments[1]->of;
  CHECK(d.name == "d");
  CHECK(d.axes.at("batch") == Value(64));
  CHECK(d.axes.at("grid") == Value(Value::List{14, 14}));
  CHECK(d.axes.at("mode") == Value("x"));
  e = parse_expression("scalar(a, \"entropy.mean\") + 1", f);
  CHECK(e->arguments[0]->arguments[0]->literal == Value("entropy.mean"));
  CHECK_THAT(error("time()", f), ContainsSubstring("the name of a case is wanted"));
  CHECK_THAT(error("time(a", f), ContainsSubstring("')' is wanted"));
  CHECK_THAT(error("time(a[batch])", f), ContainsSubstring("'=' is wanted after the axis"));
  CHECK_THAT(error("time(a[batch=])", f), ContainsSubstring("an axis value is wanted"));
  CHECK_THAT(error("time(a[b=1, b=2])", f), ContainsSubstring("bound twice"));
  CHECK_THAT(error("scalar(a)", f), ContainsSubstring("',' is wanted after the case"));
}

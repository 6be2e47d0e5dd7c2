// Parameters and problems: defaults, types, ranges, agreement, and messages that name what is wrong.
#include "methods/params.hpp"

#include <algorithm>
#include <limits>

#include "kernels/core/error.hpp"
#include "methods/problem.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

namespace {

std::vector<ParamSpec> specs() {
  ParamSpec window;
  window.name = "window_size";
  window.default_value = 2;
  window.min = 1;
  ParamSpec alpha;
  alpha.name = "alpha";
  alpha.type = ParamSpec::Type::number;
  alpha.default_value = 0.9;
  alpha.min = 0;
  alpha.max = 1;
  ParamSpec dim;
  dim.name = "dim";
  dim.from_problem = "channels";
  dim.min = 1;
  ParamSpec rows;
  rows.name = "grid_h";
  rows.from_problem = "grid[0]";
  ParamSpec inner;
  inner.name = "later_axes";
  inner.from_problem = "grid[1:]";
  ParamSpec scale;
  scale.name = "qk_scale";
  scale.type = ParamSpec::Type::number;
  scale.nullable = true;
  ParamSpec impl;
  impl.name = "impl";
  impl.type = ParamSpec::Type::choice;
  impl.choices = {"auto", "engine", "cudnn"};
  impl.default_value = "auto";
  ParamSpec decay;
  decay.name = "decay_values";
  decay.type = ParamSpec::Type::list;
  decay.default_value = Value::List{};
  decay.max = 1;
  return {window, alpha, dim, rows, inner, scale, impl, decay};
}

Problem image() {
  Problem p;
  p.kind = ProblemKind::image;
  p.channels = 768;
  p.heads = 12;
  p.grid = {14, 13};
  return p;
}

Params resolve(const std::map<std::string, Value>& given, const Problem& p = image()) {
  return resolve_params("hilo", specs(), given, p);
}

}  // namespace

TEST_CASE("parameters take the problem's extents, then their defaults") {
  const Params p = resolve({});
  CHECK(p.integer("dim") == 768);
  CHECK(p.integer("grid_h") == 14);
  CHECK(p.integer("later_axes") == 13);
  CHECK(p.integer("window_size") == 2);
  CHECK(p.number("alpha") == 0.9);
  CHECK(p.is_null("qk_scale"));
  CHECK(p.choice("impl") == "auto");
  CHECK(resolve({{"alpha", 1}}).number("alpha") == 1.0);
  CHECK(resolve({{"dim", 768}}).integer("dim") == 768);
}

TEST_CASE("every violation is reported, a line each") {
  try {
    resolve({{"windw_size", 2},
             {"alpha", 1.5},
             {"dim", 64},
             {"impl", "engin"},
             {"qk_scale", true},
             {"decay_values", Value::List{0.5, 2.0}}});
    FAIL("nothing was refused");
  } catch (const UsageError& e) {
    const std::string s = e.what();
    CHECK_THAT(s, ContainsSubstring("did you mean 'window_size'?"));
    CHECK_THAT(s, ContainsSubstring("hilo.alpha: between 0.0 and 1.0 is wanted, not 1.5"));
    CHECK_THAT(s, ContainsSubstring("hilo.dim: 64 contradicts problem.channels = 768"));
    CHECK_THAT(s, ContainsSubstring("did you mean 'engine'?"));
    CHECK_THAT(s, ContainsSubstring("hilo.qk_scale: a number is wanted, not true"));
    CHECK_THAT(s, ContainsSubstring("hilo.decay_values: at most 1.0 is wanted for every element, not 2.0"));
    CHECK(std::count(s.begin(), s.end(), '\n') == 5);
  }
  REQUIRE_THROWS_WITH(resolve({{"window_size", 0}}), ContainsSubstring("at least 1 is wanted, not 0"));
  REQUIRE_THROWS_WITH(resolve({{"window_size", 2.5}}), ContainsSubstring("a whole number is wanted"));
  REQUIRE_THROWS_WITH(resolve({{"alpha", std::numeric_limits<double>::quiet_NaN()}}),
                      ContainsSubstring("a number is wanted"));
  Problem bare;
  REQUIRE_THROWS_WITH(resolve({}, bare), ContainsSubstring("set problem.channels"));
}

TEST_CASE("nested lists and words in place of a list are taken where they are declared") {
  ParamSpec receivers;
  receivers.name = "receivers";
  receivers.type = ParamSpec::Type::list;
  receivers.default_value = "logits";
  receivers.choices = {"logits"};
  receivers.min = 0;
  const auto resolved = [&](const Value& v) {
    return resolve_params("m", {receivers}, {{"receivers", v}}, Problem{}).value("receivers");
  };
  CHECK(resolve_params("m", {receivers}, {}, Problem{}).choice("receivers") == "logits");
  CHECK(resolved("logits") == Value("logits"));
  REQUIRE_THROWS_WITH(resolved("logit"), ContainsSubstring("a list or logits is wanted, not logit"));
  const Value heads = Value::List{Value::List{1, 2}, Value::List{3, 4}};
  REQUIRE_THROWS_WITH(resolved(heads), ContainsSubstring("a list of numbers is wanted"));
  receivers.nested = true;
  CHECK(resolved(heads) == heads);
  REQUIRE_THROWS_WITH(resolved(Value::List{Value::List{1, -2}}),
                      ContainsSubstring("at least 0.0 is wanted for every element, not -2"));
  REQUIRE_THROWS_WITH(resolved(Value::List{Value::List{Value::List{1}}}),
                      ContainsSubstring("a list of numbers or of lists of numbers"));
}

TEST_CASE("texts are texts") {
  ParamSpec file;
  file.name = "file";
  file.type = ParamSpec::Type::text;
  file.default_value = "";
  CHECK(resolve_params("m", {file}, {}, Problem{}).text("file").empty());
  CHECK(resolve_params("m", {file}, {{"file", "a b.json"}}, Problem{}).text("file") == "a b.json");
  REQUIRE_THROWS_WITH(resolve_params("m", {file}, {{"file", 3}}, Problem{}),
                      ContainsSubstring("a text is wanted, not 3"));
}

TEST_CASE("problem keys are typed and ranged") {
  Problem p;
  set_problem_key(p, "kind", "image");
  set_problem_key(p, "grid", Value::List{14, 14});
  set_problem_key(p, "dtype", "bf16");
  CHECK(p.tokens() == 196);
  CHECK(p.dtype == DType::bf16);
  for (const auto& [key, value] : std::vector<std::pair<std::string, Value>>{{"batch", 0},
                                                                             {"batch", -4},
                                                                             {"batch", "64"},
                                                                             {"batch", 1.5},
                                                                             {"grid", Value::List{14, 0}},
                                                                             {"grid", 14},
                                                                             {"dtype", "i32"},
                                                                             {"dtype", "f31"},
                                                                             {"causal", 1},
                                                                             {"seed", -1},
                                                                             {"sample_rate", 0.0}}) {
    INFO(key << " = " << value.str());
    CHECK_THROWS_AS(set_problem_key(p, key, value), UsageError);
  }
  REQUIRE_THROWS_WITH(set_problem_key(p, "lenght", 4), ContainsSubstring("did you mean 'length'?"));
  REQUIRE_THROWS_WITH(set_problem_key(p, "kind", "vidoe"), ContainsSubstring("did you mean 'video'?"));
}

TEST_CASE("contradictory and overflowing problems are refused") {
  Problem p = image();
  CHECK_NOTHROW(check_problem(p));
  p.grid = {2, 3, 4};
  CHECK_THROWS_AS(check_problem(p), UsageError);
  p = image();
  p.heads = 7;  // some layers have heads that do not share the channels out: those that need it refuse it
  CHECK_NOTHROW(check_problem(p));
  p = image();
  p.grid = {int64_t{1} << 40, int64_t{1} << 40};
  CHECK_THROWS_AS(check_problem(p), UsageError);
  Problem s;
  s.heads = 8;
  s.kv_heads = 3;
  CHECK_THROWS_AS(check_problem(s), UsageError);
}

TEST_CASE("values print so that they read back equal") {
  CHECK(Value(0.1).str() == "0.1");
  CHECK(Value(2.0).str() == "2.0");
  CHECK(Value(1e300).str() == "1e+300");
  CHECK(Value().str() == "null");
  CHECK((Value(Value::List{1, 2.5, "x"}).str()) == "[1, 2.5, x]");
}

TEST_CASE("near words are near, far words are not") {
  CHECK(nearest_word("hillo", {"hilo", "mfm"}) == "hilo");
  CHECK(nearest_word("sliding", {"hilo", "mfm"}).empty());
  CHECK(nearest_word("", {"a"}) == "a");
}

TEST_CASE("one number stands for a list whose default is one") {
  ParamSpec size;
  size.name = "input_size";
  size.type = ParamSpec::Type::list;
  size.default_value = 256;
  size.min = 2;
  const auto resolved = [&](const Value& v) {
    return resolve_params("m", {size}, {{"input_size", v}}, Problem{}).value("input_size");
  };
  CHECK(resolve_params("m", {size}, {}, Problem{}).value("input_size") == Value(256));
  CHECK(resolved(32) == Value(32));
  CHECK(resolved(Value::List{9, 33}) == Value(Value::List{9, 33}));
  REQUIRE_THROWS_WITH(resolved(1), ContainsSubstring("at least 2.0 is wanted, not 1"));
  size.default_value = Value::List{256};
  REQUIRE_THROWS_WITH(resolved(32), ContainsSubstring("a list is wanted, not 32"));
}

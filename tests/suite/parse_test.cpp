#include "suite/parse.hpp"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "tests/catch.hpp"
#include "tests/suite/fake_methods.hpp"

using namespace attnbench;

namespace {

const char* kPlain = R"(suite: plain
title: Two layers
defaults: { dtype: f32, devices: [cpu], threads: auto, precision: 1%, max_time: 10s }
problem: { kind: image, batch: 64, grid: [14, 14], channels: 768, heads: 12 }
axes: { problem.batch: [1, 64] }
cases:
  - { name: split, method: fake_split, params: { window_size: 2, alpha: 0.9 } }
  - { name: plain, method: fake_plain, params: { sr_ratio: 2 }, when: "problem.grid[0] % 7 == 0" }
baseline: plain
measure: [time, flops, memory, error]
analyses: [fake_spread]
claims:
  - { id: ratio, ratio: time(plain) / time(split), published: 1.449, where: "table T", device: cpu, tolerance: 15%, axes: { batch: 64 } }
)";

Suite parse(const std::string& text, const SuiteOptions& options = {}) {
  fake::register_all();
  return parse_suite(text, "s.yaml", options);
}

using Names = std::vector<std::string>;
Names names(const Suite& s) {
  Names n;
  for (const Case& c : s.cases) n.push_back(c.name);
  return n;
}

/// All errors of a text, a line each; empty when it is a good suite.
std::string errors(const std::string& text, const SuiteOptions& options = {}) {
  try {
    parse(text, options);
  } catch (const UsageError& e) {
    return e.what();
  }
  return "";
}

/// A suite around one part that is to be looked at: line 4 is the first line of `part` after one case.
std::string with(const std::string& part, const std::string& cases = "cases: [fake_split]\n") {
  return "suite: s\nproblem: { kind: image, grid: [14, 14], channels: 64, heads: 2 }\n" + cases + part;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("a plain suite resolves") {
  const Suite s = parse(kPlain);
  CHECK(s.name == "plain");
  CHECK(s.title == "Two layers");
  CHECK(s.measure == MeasureConfig{});
  CHECK(names(s) == Names{"split/batch=1", "split/batch=64", "plain/batch=1", "plain/batch=64"});
  const Case& c = s.cases[1];
  CHECK(c.base_name == "split");
  CHECK(c.method == "fake_split");
  CHECK(c.device == "cpu");
  CHECK(c.problem.batch == 64);
  CHECK(c.problem.grid == std::vector<int64_t>{14, 14});
  CHECK(c.problem.channels == 768);
  CHECK(c.axes.at("problem.batch") == Value(64));
  CHECK(c.params.at("alpha") == Value(0.9));
  CHECK(c.place.str() == "s.yaml:7:13");
  CHECK(s.baseline == "plain");
  CHECK(s.measures == Names{"time", "flops", "memory", "error"});
  CHECK(s.analyses == Names{"fake_spread"});
  REQUIRE(s.claims.size() == 1);
  CHECK(s.claims[0].published_text == "1.449");
  CHECK(s.claims[0].tolerance == Approx(0.15));
  CHECK(s.claims[0].where == "table T");
}

TEST_CASE("defaults are read in their units") {
  const Suite s = parse(with(
      "defaults: { dtype: bf16, threads: 3, precision: 0.02, max_time: 500ms, min_samples: 5, max_samples: "
      "50,\n            min_sample: 2ms, cache: cold, keep_samples: true, seed: 7 }\n"));
  CHECK(s.measure.precision == 0.02);
  CHECK(s.measure.max_time_s == Approx(0.5));
  CHECK(s.measure.min_samples == 5);
  CHECK(s.measure.max_samples == 50);
  CHECK(s.measure.min_sample_s == Approx(0.002));
  CHECK(s.measure.cache == "cold");
  CHECK(s.measure.keep_samples);
  CHECK(s.measure.threads == 3);
  CHECK(s.cases[0].problem.dtype == DType::bf16);
  CHECK(s.cases[0].problem.seed == 7);
  CHECK(parse(with("defaults: { max_time: 2min }\n")).measure.max_time_s == 120);
  CHECK(parse(with("defaults: { max_time: 3 }\n")).measure.max_time_s == 3);
}

TEST_CASE("all errors are reported together, each with its place and the nearest word") {
  const std::string e = errors(R"(suite: s
titel: Slip
problem: { kind: image, batch: -1, grid: [14, 14], chanels: 64, heads: 2 }
cases:
  - { name: a, method: fake_splt }
  - { name: b, method: fake_split, params: { alhpa: 0.5, window_size: 0 } }
  - { name: b, method: fake_plain }
baseline: c
measure: [time, flop]
analyses: [fake_spred]
claims:
  - { id: x, ratio: time(aa) / time(b), published: 1, tolerance: 0 }
)");
  CHECK_THAT(e, ContainsSubstring("s.yaml:2:1: unknown key 'titel' of a suite; did you mean 'title'?"));
  CHECK_THAT(e, ContainsSubstring("s.yaml:3:32: problem.batch: at least 1 is wanted, not -1"));
  CHECK_THAT(e, ContainsSubstring("s.yaml:3:52: unknown key 'chanels' of problem; did you mean 'channels'?"));
  CHECK_THAT(e, ContainsSubstring("s.yaml:5:24: unknown method 'fake_splt'; did you mean 'fake_split'?"));
  CHECK_THAT(e, ContainsSubstring(
                    "s.yaml:6:46: method 'fake_split' has no parameter 'alhpa'; did you mean 'alpha'?"));
  CHECK_THAT(e, ContainsSubstring("s.yaml:7:13: duplicate case name 'b'; the other case is in line 6"));
  CHECK_THAT(e, ContainsSubstring("s.yaml:9:17: measure: one of time, flops, memory, error is wanted"));
  CHECK_THAT(e,
             ContainsSubstring("s.yaml:10:12: unknown analysis 'fake_spred'; did you mean 'fake_spread'?"));
  CHECK_THAT(e, ContainsSubstring("s.yaml:8:11: baseline: there is no case 'c'"));
  CHECK_THAT(e, ContainsSubstring("s.yaml:12:21: claim 'x': there is no case 'aa'"));
  CHECK(std::count(e.begin(), e.end(), '\n') == 9);
}

TEST_CASE("SuiteErrors carries its list") {
  fake::register_all();
  try {
    parse_suite("suite: s\nfoo: 1\ncases: [fake_split]\nbar: 2\n", "s.yaml");
    FAIL("no error");
  } catch (const SuiteErrors& e) {
    REQUIRE(e.errors().size() == 2);
    CHECK(e.errors()[0].place.line == 2);
    CHECK(e.errors()[1].place.line == 4);
    CHECK(e.errors()[1].place.column == 1);
  }
}

TEST_CASE("wrong types and ranges are refused where they stand") {
  const auto problem = [](const std::string& keys) {
    return errors("suite: s\nproblem: { " + keys + " }\ncases: [fake_split]\n");
  };
  CHECK_THAT(problem("batch: \"64\""),
             ContainsSubstring("s.yaml:2:19: problem.batch: a whole number is wanted"));
  CHECK_THAT(problem("batch: \"64\""), ContainsSubstring("64 in quotes is a text: leave the quotes out"));
  CHECK_THAT(problem("batch: 0"), ContainsSubstring("problem.batch: at least 1 is wanted, not 0"));
  CHECK_THAT(problem("batch: 1.5"), ContainsSubstring("a whole number is wanted, not 1.5"));
  CHECK_THAT(problem("batch: yes"), ContainsSubstring("a whole number is wanted, not yes"));
  CHECK_THAT(problem("batch: { a: 1 }"), ContainsSubstring("not a map"));
  CHECK_THAT(problem("causal: 1"), ContainsSubstring("true or false is wanted"));
  CHECK_THAT(problem("kind: imge"), ContainsSubstring("did you mean 'image'?"));
  CHECK_THAT(problem("dtype: fp32"), ContainsSubstring("fp32"));
  CHECK_THAT(problem("kind: image, grid: [14]"),
             ContainsSubstring("s.yaml:2:25: problem.grid: an image has two axes"));
  CHECK_THAT(problem("kind: image, grid: [14, -2]"), ContainsSubstring("problem.grid: at least 1"));
  CHECK_THAT(problem("kind: image, grid: []"), ContainsSubstring("problem.grid: a list of 1 to 3"));
  CHECK_THAT(problem("heads: 6, kv_heads: 4"), ContainsSubstring("4 does not divide heads 6"));
  CHECK_THAT(problem("sample_rate: .inf"), ContainsSubstring("only finite numbers"));
  CHECK_THAT(problem("sample_rate: .nan"), ContainsSubstring("only finite numbers"));
  CHECK(problem("kind: signal, sample_rate: 1e3, samples: 8").empty());

  const auto defaults = [](const std::string& keys) { return errors(with("defaults: { " + keys + " }\n")); };
  CHECK_THAT(defaults("precision: 0"), ContainsSubstring("s.yaml:4:24: precision: a share between 0 and 1"));
  CHECK_THAT(defaults("precision: 150%"), ContainsSubstring("precision: a share"));
  CHECK_THAT(defaults("precision: fine"), ContainsSubstring("not the text 'fine'"));
  CHECK_THAT(defaults("max_time: 10h"), ContainsSubstring("max_time: a duration above 0"));
  CHECK_THAT(defaults("max_time: -1"), ContainsSubstring("max_time: a duration above 0"));
  CHECK_THAT(defaults("threads: 0"), ContainsSubstring("threads: a whole number between 1"));
  CHECK_THAT(defaults("threads: all"), ContainsSubstring("threads: auto or a whole number"));
  CHECK_THAT(defaults("devices: [gpu]"), ContainsSubstring("one of cpu, cuda is wanted"));
  CHECK_THAT(defaults("devices: []"), ContainsSubstring("the list is empty"));
  CHECK_THAT(defaults("devices: [cpu, cpu]"), ContainsSubstring("'cpu' stands twice"));
  CHECK_THAT(defaults("cache: warm"), ContainsSubstring("one of auto, hot, cold is wanted"));
  CHECK_THAT(defaults("keep_samples: 1"), ContainsSubstring("true or false is wanted, not the number 1"));
  CHECK_THAT(defaults("min_samples: 100, max_samples: 10"),
             ContainsSubstring("min_samples 100 is more than"));
  CHECK_THAT(defaults("precison: 1%"), ContainsSubstring("did you mean 'precision'?"));

  const auto param = [](const std::string& keys) {
    return errors(with("", "cases:\n  - { method: fake_split, params: { " + keys + " } }\n"));
  };
  CHECK_THAT(param("alpha: 1.5"),
             ContainsSubstring("s.yaml:4:37: fake_split.alpha: between 0.0 and 1.0 is wanted"));
  CHECK_THAT(param("alpha: \"0.5\""), ContainsSubstring("in quotes is a text"));
  CHECK_THAT(param("window_size: 2.0"),
             ContainsSubstring("fake_split.window_size: a whole number is wanted"));
  CHECK_THAT(param("window_size: null"), ContainsSubstring("a value is wanted, not null"));
  CHECK_THAT(param("mode: fsat"), ContainsSubstring("did you mean 'fast'?"));
  CHECK_THAT(param("dim: 32"), ContainsSubstring("32 contradicts problem.channels = 64"));
  CHECK_THAT(param("alpha: 2, mode: slow"), ContainsSubstring("fake_split.mode"));
  CHECK_THAT(param("alpha: 2, mode: slow"), ContainsSubstring("fake_split.alpha"));
  CHECK(param("qk_scale: null, alpha: 1e-1, dim: 64").empty());
}

TEST_CASE("sizes that overflow are refused at load") {
  const auto problem = [](const std::string& keys) {
    return errors("suite: s\nproblem: { " + keys + " }\ncases: [fake_plain]\n");
  };
  CHECK_THAT(problem("batch: 9223372036854775808"),
             ContainsSubstring("s.yaml:2:19: the whole number 9223372036854775808 does not fit"));
  CHECK_THAT(problem("batch: 1e999"), ContainsSubstring("does not fit into a double"));
  CHECK_THAT(problem("batch: 4000000000, heads: 1000, length: 1000000, head_dim: 1000"),
             ContainsSubstring("overflow"));
  CHECK_THAT(problem("heads: 9000000000000000000, length: 2, head_dim: 9"), ContainsSubstring("overflow"));
  CHECK_THAT(problem("kind: image, grid: [4000000000, 4000000000], channels: 1"),
             ContainsSubstring("overflow"));
  CHECK_THAT(problem("kind: image, size: [4000000000, 4000000000], channels: 1"),
             ContainsSubstring("overflow"));
  // Large, but a number of bytes: whether it fits into memory is the run's question.
  CHECK(problem("batch: 1, heads: 1000, length: 1000000000, head_dim: 128").empty());
}

TEST_CASE("axes multiply and zipped lists advance together") {
  const Suite s =
      parse(with("axes: { problem.batch: [1, 2], dtype: [f32, bf16] }\n"
                 "zip: { problem.grid: [[14, 14], [28, 28]], problem.channels: [64, 128] }\n"));
  REQUIRE(s.cases.size() == 8);
  CHECK(s.cases[0].name == "fake_split/batch=1/dtype=f32/grid=14x14/channels=64");
  CHECK(s.cases[7].name == "fake_split/batch=2/dtype=bf16/grid=28x28/channels=128");
  CHECK(s.cases[7].problem.dtype == DType::bf16);
  CHECK(s.cases[7].problem.grid == std::vector<int64_t>{28, 28});

  const Suite two = parse(
      with("zip:\n  - { problem.batch: [1, 2], problem.seed: [3, 4] }\n  - { params.alpha: [0.1, 0.2] }\n"));
  CHECK(names(two) == Names{"fake_split/batch=1/seed=3/alpha=0.1", "fake_split/batch=1/seed=3/alpha=0.2",
                            "fake_split/batch=2/seed=4/alpha=0.1", "fake_split/batch=2/seed=4/alpha=0.2"});

  SECTION("an axis of one value does not lengthen the name") {
    CHECK(names(parse(with("axes: { problem.batch: [4] }\n"))) == Names{"fake_split"});
  }
  SECTION("a suite-wide parameter axis concerns the methods that have it") {
    const Suite p = parse(with("axes: { params.alpha: [0.1, 0.9] }\n", "cases: [fake_split, fake_plain]\n"));
    CHECK(names(p) == Names{"fake_split/alpha=0.1", "fake_split/alpha=0.9", "fake_plain"});
  }
  SECTION("a case has axes of its own") {
    const Suite p = parse(
        with("", "cases:\n  - { method: fake_plain, axes: { params.sr_ratio: [1, 2] } }\n  - fake_split\n"));
    CHECK(names(p) == Names{"fake_plain/sr_ratio=1", "fake_plain/sr_ratio=2", "fake_split"});
  }
}

TEST_CASE("contradictory axes are errors") {
  CHECK_THAT(errors(with("axes: { problem.batch: [] }\n")),
             ContainsSubstring("s.yaml:4:24: axes.problem.batch: the list of values is empty"));
  CHECK_THAT(errors(with("axes: { problem.batch: 4 }\n")),
             ContainsSubstring("a list is wanted, not the number 4"));
  CHECK_THAT(errors(with("axes: { problem.bach: [1] }\n")),
             ContainsSubstring("unknown axis 'problem.bach'; did you mean 'problem.batch'?"));
  CHECK_THAT(errors(with("axes: { batch: [1] }\n")), ContainsSubstring("did you mean 'problem.batch'?"));
  CHECK_THAT(errors(with("axes: { params.alhpa: [1] }\n")),
             ContainsSubstring("did you mean 'params.alpha'?"));
  CHECK_THAT(errors(with("axes: { problem.batch: [1, 2] }\nzip: { problem.batch: [3, 4] }\n")),
             ContainsSubstring("s.yaml:5:8: 'problem.batch' is set by two axes; the other one is in line 4"));
  CHECK_THAT(errors(with("axes: { dtype: [f32], problem.dtype: [bf16] }\n")),
             ContainsSubstring("set by two axes"));
  CHECK_THAT(errors(with("zip: { problem.batch: [1, 2], problem.seed: [3] }\n")),
             ContainsSubstring("1 values beside the 2 of 'problem.batch'"));
  CHECK_THAT(errors(with("axes: { problem.batch: [1, 1] }\n")),
             ContainsSubstring("two cases would be called 'fake_split/batch=1'"));
  CHECK_THAT(
      errors(with("axes: { problem.batch: [1, 2] }\n",
                  "cases: [{ method: fake_split, problem: { batch: 3 } }]\n")),
      ContainsSubstring(
          "s.yaml:4:9: the axis 'problem.batch' contradicts case 'fake_split', which sets it in line 3"));
  CHECK_THAT(errors(with("axes: { params.alpha: [0.1, 0.2] }\n",
                         "cases: [{ method: fake_split, params: { alpha: 0.5 } }]\n")),
             ContainsSubstring("the axis 'params.alpha' contradicts case 'fake_split'"));
  CHECK_THAT(errors(with("axes: { device: [cpu] }\n", "cases: [{ method: fake_split, device: cpu }]\n")),
             ContainsSubstring("the axis 'device' contradicts"));
  CHECK_THAT(errors(with("", "cases: [{ method: fake_plain, axes: { params.alpha: [1] } }]\n")),
             ContainsSubstring("no parameter 'alpha'"));
  CHECK_THAT(errors(with("axes: { problem.batch: [1, 0] }\n")),
             ContainsSubstring("s.yaml:4:28: problem.batch: at least 1"));
  std::string many = "axes: { problem.batch: &v [";
  for (int i = 1; i <= 200; ++i) many += std::to_string(i) + (i < 200 ? ", " : "] ");
  CHECK_THAT(errors(with(many + ", problem.seed: *v, problem.heads: *v }\n")),
             ContainsSubstring("more than 10000 cases"));
}

TEST_CASE("devices multiply cases and --device chooses among them") {
  const std::string both = with("defaults: { devices: [cpu, cuda] }\n",
                                "cases: [fake_split, { name: host, method: fake_plain, device: cpu }]\n");
  CHECK(names(parse(both)) == Names{"fake_split@cpu", "fake_split@cuda", "host"});
  SuiteOptions o;
  o.devices = {"cpu"};
  CHECK(names(parse(both, o)) == Names{"fake_split", "host"});
  o.devices = {"cuda"};
  const Suite cuda = parse(both, o);
  CHECK(names(cuda) == Names{"fake_split"});
  CHECK(cuda.cases[0].device == "cuda");
  CHECK_THAT(errors(with("", "cases: [{ method: fake_plain, device: cpu }]\n"), o),
             ContainsSubstring("no case is left on cuda"));
  o.devices = {"cdua"};
  CHECK_THAT(errors(both, o), ContainsSubstring("there is no such device; did you mean 'cuda'?"));
  CHECK(names(parse(with("axes: { device: [cpu, cuda] }\n"))) ==
        Names{"fake_split/device=cpu", "fake_split/device=cuda"});
}

TEST_CASE("a case's problem extends the suite's") {
  const Suite s = parse(with("defaults: { dtype: bf16 }\n", R"(cases:
  - { name: a, method: fake_plain, problem: { grid: [7, 7] } }
  - { name: b, method: fake_plain, problem: { kind: sequence, heads: 4, length: 32, head_dim: 16 } }
  - { name: c, method: fake_plain, problem: { channels: null, head_dim: 32 }, dtype: f32 }
)"));
  CHECK(s.cases[0].problem.channels == 64);
  CHECK(s.cases[0].problem.grid == std::vector<int64_t>{7, 7});
  CHECK(s.cases[1].problem.kind == ProblemKind::sequence);
  CHECK(s.cases[1].problem.grid.empty());
  CHECK(s.cases[1].problem.channels == 0);
  CHECK(s.cases[1].problem.dtype == DType::bf16);
  CHECK(s.cases[2].problem.channels == 0);
  CHECK(s.cases[2].problem.head_dim == 32);
  CHECK(s.cases[2].problem.dtype == DType::f32);
}

TEST_CASE("when drops cases and points into itself when it is wrong") {
  const auto when = [](const std::string& expression) {
    return with("", "cases:\n  - { name: a, method: fake_split, when: '" + expression +
                        "' }\n  - { name: b, method: fake_plain }\n");
  };
  const auto kept = [&](const std::string& e) { return parse(when(e)).cases.size() == 2; };
  CHECK(kept("problem.grid[0] % 7 == 0"));
  CHECK_FALSE(kept("problem.grid[1] > 14"));
  CHECK(kept("params.alpha == 0.5 and params.mode == \"fast\""));  // defaults count
  CHECK_FALSE(kept("device == \"cuda\" or dtype != \"f32\""));
  CHECK(kept("not quick"));
  CHECK_THAT(
      errors(when("problem.gird[0] == 1")),
      ContainsSubstring("s.yaml:4:43: when: unknown name 'problem.gird'; did you mean 'problem.grid'?"));
  CHECK_THAT(errors(when("1 < problem.batch < 3")),
             ContainsSubstring("s.yaml:4:61: when: comparisons do not chain"));
  CHECK_THAT(errors(when("problem.batch")),
             ContainsSubstring("when: true or false is wanted here, not the number 1"));
  CHECK_THAT(errors(when("problem.samples > 1")),
             ContainsSubstring("'problem.samples' is not set for this case"));
  CHECK_THAT(errors(when("problem.grid[2] > 1")), ContainsSubstring("the list has 2 elements"));
  CHECK_THAT(errors(when("device == cpu")), ContainsSubstring("a text stands in quotes: 'cpu'"));
  CHECK_THAT(errors(with("", "cases: [{ method: fake_split, when: false }]\n")),
             ContainsSubstring("no case is left"));

  SECTION("what when excludes need not be valid") {
    CHECK(errors(with("axes: { params.alpha: [0.5, 7] }\n",
                      "cases: [{ method: fake_split, when: params.alpha <= 1 }]\n"))
              .empty());
    CHECK_FALSE(errors(with("axes: { params.alpha: [0.5, 7] }\n")).empty());
  }
}

TEST_CASE("quick shortens and drops what is marked") {
  const std::string text = with(
      "defaults: { precision: 1%, max_time: 10s }\naxes: { problem.batch: [1, { value: 64, when: not quick "
      "}] }\n",
      "cases: [fake_split, { method: fake_plain, when: not quick }]\n");
  CHECK(parse(text).cases.size() == 4);
  SuiteOptions o;
  o.quick = true;
  const Suite s = parse(text, o);
  CHECK(names(s) == Names{"fake_split/batch=1"});
  CHECK(s.measure.precision == 0.05);
  CHECK(s.measure.max_time_s == 1.0);
  CHECK(parse(with("defaults: { precision: 10%, max_time: 200ms }\n"), o).measure.precision == 0.1);
  CHECK(parse(with("defaults: { precision: 10%, max_time: 200ms }\n"), o).measure.max_time_s == Approx(0.2));
}

TEST_CASE("--set changes the file before it is checked") {
  const auto set = [](std::vector<std::string> assignments) {
    SuiteOptions o;
    o.set = std::move(assignments);
    return o;
  };
  const Suite s = parse(kPlain, set({"defaults.precision=5%", "cases.split.params.alpha=0.25", "title=Other",
                                     "claims.ratio.tolerance=20%", "problem.channels=384"}));
  CHECK(s.measure.precision == 0.05);
  CHECK(s.cases[0].params.at("alpha") == Value(0.25));
  CHECK(s.title == "Other");
  CHECK(s.claims[0].tolerance == Approx(0.2));
  CHECK(s.cases[0].problem.channels == 384);

  SECTION("a value replaces the axis of its key") {
    const Suite b = parse(kPlain, set({"problem.batch=8", "claims.ratio.axes={}"}));
    CHECK(names(b) == Names{"split", "plain"});
    CHECK(b.cases[0].problem.batch == 8);
  }
  SECTION("axes are set as a whole") {
    const Suite b = parse(kPlain, set({"axes.problem.batch=[2, 64]"}));
    CHECK(names(b) == Names{"split/batch=2", "split/batch=64", "plain/batch=2", "plain/batch=64"});
  }
  SECTION("params.X reaches every case whose method has it") {
    const Suite b = parse(
        with("", "cases: [fake_split, fake_plain, { name: c, method: fake_split, params: { alpha: 1 } }]\n"),
        set({"params.alpha=0.125"}));
    CHECK(b.cases[0].params.at("alpha") == Value(0.125));
    CHECK(b.cases[1].params.empty());
    CHECK(b.cases[2].params.at("alpha") == Value(0.125));
  }
  SECTION("mistakes name the --set") {
    CHECK_THAT(errors(kPlain, set({"problem.batch"})),
               ContainsSubstring("--set problem.batch: 'key=value' is wanted"));
    CHECK_THAT(errors(kPlain, set({"problem.channels=0"})),
               ContainsSubstring("--set problem.channels=0: problem.channels: at least 1"));
    CHECK_THAT(errors(kPlain, set({"problem.chanels=1"})),
               ContainsSubstring(
                   "--set problem.chanels=1: unknown key 'chanels' of problem; did you mean 'channels'?"));
    CHECK_THAT(errors(kPlain, set({"cases.splt.params.alpha=1"})),
               ContainsSubstring("no case 'splt'; did you mean 'split'?"));
    CHECK_THAT(errors(kPlain, set({"params.alhpa=1"})),
               ContainsSubstring("no method of the suite has a parameter 'alhpa'; did you mean 'alpha'?"));
    CHECK_THAT(errors(kPlain, set({"cases.split.params.alpha=3"})),
               ContainsSubstring("--set cases.split.params.alpha=3: fake_split.alpha: between 0.0 and 1.0"));
    CHECK_THAT(errors(kPlain, set({"title.x=3"})), ContainsSubstring("goes through the text"));
    CHECK_THAT(errors(kPlain, set({"problem.grid=[1"})),
               ContainsSubstring("--set problem.grid=[1: malformed YAML"));
    CHECK_THAT(errors(kPlain, set({"nonsense=1"})), ContainsSubstring("unknown key 'nonsense'"));
    CHECK_THAT(errors(kPlain, set({"cases.split.problem.batch=3"})),
               ContainsSubstring("contradicts case 'split', which sets it by --set"));
  }
}

TEST_CASE("filters choose by glob and by regular expression") {
  const auto kept = [](std::vector<std::string> filter) {
    SuiteOptions o;
    o.filter = std::move(filter);
    return names(parse(kPlain, o));
  };
  CHECK(kept({"split"}) == Names{"split/batch=1", "split/batch=64"});
  CHECK(kept({"*batch=64"}) == Names{"split/batch=64", "plain/batch=64"});
  CHECK(kept({"-split"}) == Names{"plain/batch=1", "plain/batch=64"});
  CHECK(kept({"-*=1"}) == Names{"split/batch=64", "plain/batch=64"});
  CHECK(kept({"spl?t", "-*=64"}) == Names{"split/batch=1"});
  CHECK(kept({"/^p.*64$/"}) == Names{"plain/batch=64"});
  CHECK(kept({"-/^p/"}) == Names{"split/batch=1", "split/batch=64"});
  CHECK(kept({"split/batch=1", "plain/batch=64"}) == Names{"split/batch=1", "plain/batch=64"});
  SuiteOptions o;
  o.filter = {"splt"};
  CHECK_THAT(errors(kPlain, o),
             ContainsSubstring("the filter 'splt' matches none of the 4 cases; did you mean 'split'?"));
  o.filter = {"/(/"};
  CHECK_THAT(errors(kPlain, o), ContainsSubstring("not a valid regular expression"));
}

TEST_CASE("inputs name a generator or a file") {
  fake::register_all();
  const auto inputs = [](const std::string& v) {
    return "suite: s\nproblem: { heads: 1, length: 4, head_dim: 4, inputs: " + v +
           " }\ncases: [fake_plain]\n";
  };
  const Suite s = parse(inputs("{ generator: fake_decay, scale: 2 }"));
  CHECK(s.cases[0].problem.inputs.generator == "fake_decay");
  CHECK(s.cases[0].problem.inputs.arguments.at("scale") == Value(2));
  CHECK(parse(inputs("fake_decay")).cases[0].problem.inputs.generator == "fake_decay");
  CHECK_THAT(errors(inputs("fake_decy")), ContainsSubstring("did you mean 'fake_decay'?"));
  CHECK_THAT(errors(inputs("{ generator: fake_decay, scael: 2 }")),
             ContainsSubstring("generator 'fake_decay' has no parameter 'scael'; did you mean 'scale'?"));
  CHECK_THAT(errors(inputs("{ generator: fake_decay, scale: -2 }")),
             ContainsSubstring("s.yaml:2:79: fake_decay.scale: at least 0.0"));
  CHECK_THAT(errors(inputs("{ scale: 2 }")), ContainsSubstring("a generator or a file is wanted"));
  CHECK_THAT(errors(inputs("{ file: nowhere.safetensors }")),
             ContainsSubstring("s.yaml:2:62: inputs: there is no file 'nowhere.safetensors'"));
  CHECK_THAT(errors(inputs("3")), ContainsSubstring("not the number 3"));

  // A relative file stands beside the suite.
  const auto dir = std::filesystem::temp_directory_path() / ("attnbench_suite_" + std::to_string(getpid()));
  std::filesystem::create_directories(dir);
  std::ofstream(dir / "x.safetensors") << "x";
  std::ofstream(dir / "s.yaml") << inputs("{ file: x.safetensors }");
  CHECK(load_suite((dir / "s.yaml").string()).cases[0].problem.inputs.file ==
        (dir / "x.safetensors").string());
  std::filesystem::remove_all(dir);
}

TEST_CASE("analyses take parameters") {
  const Suite s = parse(with("analyses: [{ fake_spread: { depth: 3 } }]\n"));
  CHECK(s.analyses == Names{"fake_spread"});
  CHECK(s.analysis_params.at("fake_spread").at("depth") == Value(3));
  CHECK_THAT(errors(with("analyses: [{ fake_spread: { depht: 3 } }]\n")),
             ContainsSubstring("analysis 'fake_spread' has no parameter 'depht'; did you mean 'depth'?"));
  CHECK_THAT(errors(with("analyses: [{ fake_spread: { depth: 0 } }]\n")),
             ContainsSubstring("s.yaml:4:29: fake_spread.depth: between 1 and 100"));
  CHECK_THAT(errors(with("analyses: [fake_spread, fake_spread]\n")), ContainsSubstring("stands twice"));
}

TEST_CASE("claims are checked when the suite is read") {
  const auto claim = [](const std::string& keys) {
    return errors(
        with("axes: { problem.batch: [1, 64] }\nanalyses: [fake_spread]\nclaims:\n  - { " + keys + " }\n",
             "cases: [fake_split, fake_plain]\n"));
  };
  CHECK(claim("id: a, ratio: 'time(fake_split[batch=64]) / time(fake_plain[problem.batch=64])', published: "
              "1.40, tolerance: 15%")
            .empty());
  CHECK(claim("id: a, value: macs(fake_split) / 1e6, published: 298.30, tolerance: 0, axes: { batch: 1 }")
            .empty());
  CHECK(
      claim("id: a, value: 'scalar(fake_split[batch=1], \"fake_spread.mean\")', published: 3, tolerance: 0.1")
          .empty());
  CHECK_THAT(claim("id: a, value: macs(fake_split), published: 1, tolerance: 0"),
             ContainsSubstring("'fake_split' may be 'fake_split/batch=1' or 'fake_split/batch=64'"));
  CHECK_THAT(claim("id: a, value: macs(fake_split), published: 1, tolerance: 0, axes: { batch: 2 }"),
             ContainsSubstring("the axis 'batch' has no value 2"));
  CHECK_THAT(claim("id: a, value: macs(fake_split), published: 1, tolerance: 0, axes: { bacth: 1 }"),
             ContainsSubstring("the suite has no axis 'bacth'; did you mean 'batch'?"));
  CHECK_THAT(claim("id: a, value: thruput(fake_split), published: 1, tolerance: 0"),
             ContainsSubstring("unknown function 'thruput'"));
  CHECK_THAT(claim("id: a, value: fake_split / 2, published: 1, tolerance: 0"),
             ContainsSubstring("'fake_split' alone has no value"));
  CHECK_THAT(claim("id: a, published: 1, tolerance: 0"), ContainsSubstring("a claim needs what it is about"));
  CHECK_THAT(claim("id: a, ratio: '1', value: '2', published: 1, tolerance: 0"),
             ContainsSubstring("not both"));
  CHECK_THAT(claim("id: a, value: '1', tolerance: 0"),
             ContainsSubstring("a claim needs the published figure"));
  CHECK_THAT(claim("id: a, value: '1', published: 1"), ContainsSubstring("how near is near enough"));
  CHECK_THAT(claim("id: a, value: '1', published: '1', tolerance: 0"),
             ContainsSubstring("published: a number is wanted, not the text '1' (1 in quotes"));
  CHECK_THAT(claim("id: a, value: '1', published: 1, tolerance: -1"),
             ContainsSubstring("tolerance: a share"));
  CHECK_THAT(claim("id: a, value: '1', published: 1, tolerance: 0, compare: atleast"),
             ContainsSubstring("did you mean 'at_least'?"));
  CHECK_THAT(claim("value: '1', published: 1, tolerance: 0"), ContainsSubstring("a claim needs an id"));
  CHECK_THAT(
      claim("id: a, value: 'scalar(fake_split[batch=1], \"entropy.mean\")', published: 3, tolerance: 0.1"),
      ContainsSubstring("does not ask for the analysis 'entropy'"));
  CHECK_THAT(claim("id: a, value: 'scalar(fake_split[batch=1], 3)', published: 3, tolerance: 0.1"),
             ContainsSubstring("wants the figure as a text"));
  CHECK_THAT(claim("id: a, value: '1', published: 1, tolerance: 0, when: problem.batch == 1"),
             ContainsSubstring("knows only `quick`"));

  SuiteOptions quick;
  quick.quick = true;
  const std::string text =
      with("claims:\n  - { id: a, value: macs(fake_split), published: 1, tolerance: 0, when: not quick }\n");
  CHECK(parse(text).claims.size() == 1);
  // What a quick run leaves out is still published: it stays, and says why it has no figure.
  const Suite shortened = parse(text, quick);
  REQUIRE(shortened.claims.size() == 1);
  CHECK(shortened.claims[0].left_out == "left out by --quick");
}

TEST_CASE("the resolved text is the same for suites that mean the same") {
  const std::string text = parse(kPlain).resolved_text;
  REQUIRE_FALSE(text.empty());
  CHECK(text == parse(kPlain).resolved_text);
  const auto same = [&](const std::string& from, const std::string& to) {
    return parse(replaced(kPlain, from, to)).resolved_text == text;
  };
  CHECK(same("{ window_size: 2, alpha: 0.9 }", "{ alpha: 0.9, window_size: 2 }"));
  CHECK(same("{ window_size: 2, alpha: 0.9 }",
             "{   # as in the paper\n      alpha: 9e-1,\n      window_size:   2 }"));
  CHECK(same("{ kind: image, batch: 64,", "{ batch: 3, kind: image,"));  // the axis decides
  CHECK(same("title: Two layers", "title: Something else"));
  CHECK(same("alpha: 0.9 }", "alpha: 0.9, qkv_bias: true }"));  // a stated default
  CHECK_FALSE(same("alpha: 0.9 }", "alpha: 0.8 }"));
  CHECK_FALSE(same("channels: 768", "channels: 384"));
  CHECK_FALSE(same("precision: 1%", "precision: 2%"));
  CHECK_FALSE(same("[1, 64]", "[2, 64]"));
  CHECK_FALSE(same("baseline: plain", "baseline: split"));
  CHECK_FALSE(same("published: 1.449", "published: 1.4490"));
  CHECK_FALSE(same("dtype: f32", "dtype: bf16"));
}

TEST_CASE("incomplete suites say what is missing") {
  CHECK_THAT(errors("title: x\n"), ContainsSubstring("a suite needs a name"));
  CHECK_THAT(errors("title: x\n"), ContainsSubstring("a suite needs cases"));
  CHECK_THAT(errors("suite: s\ncases: []\n"), ContainsSubstring("cases: the list is empty"));
  CHECK_THAT(errors("suite: s\ncases: 3\n"), ContainsSubstring("cases: a list is wanted, not the number 3"));
  CHECK_THAT(errors("suite: s\ncases: [{ name: a }]\n"), ContainsSubstring("a case needs a method"));
  CHECK_THAT(errors("suite: s\ncases: [{ name: 'a b', method: fake_plain }]\n"),
             ContainsSubstring("a name of letters"));
  CHECK_THAT(errors("- 1\n"), ContainsSubstring("a suite is a map"));
  CHECK_THAT(errors("suite\n"), ContainsSubstring("a suite is a map"));
  CHECK_THAT(errors("suite: [x]\ncases: [fake_plain]\n"),
             ContainsSubstring("s.yaml:1:8: the suite's name: a name"));
}

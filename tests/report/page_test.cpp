// Escaping, the page's frame, charts, the fit of a power law and the report page as text. What a browser
// makes of it: browser_test.cpp.
#include "report/page.hpp"

#include <cmath>

#include "report/charts.hpp"
#include "report/format.hpp"
#include "report/page_assets.hpp"
#include "report/scaling.hpp"
#include "tests/catch.hpp"
#include "tests/report/markup.hpp"
#include "tests/report/sample_run.hpp"

using namespace attnbench;

namespace {

// Everything that HTML, attributes, scripts and terminals give a meaning to.
const std::string kHostile =
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload='x' &lt; ]]> \x1b[31m \x07 "
    "\xe2\x80\xae rtl \xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d emoji \xf0\x9f\x9a\x80 \xff \xef\xbf\xbe \n line";

RunResult hostile_run() {
  RunResult run = sample_run();
  run.suite.name = run.suite.title = run.suite.resolved_text = run.suite.baseline = kHostile;
  run.suite_hash = run.started_at = run.finished_at = kHostile;
  for (CaseResult& c : run.cases) {
    c.spec.base_name = c.spec.name + kHostile;
    c.spec.name += kHostile;
    c.spec.axes = {{kHostile, Value(kHostile)}};
    c.warnings = {kHostile};
    c.reason = kHostile;
    for (StageTime& s : c.stages) s.stage += kHostile;
    if (c.ratio) c.ratio->baseline = kHostile;
    if (c.bound) c.bound->bound_by = kHostile;
    c.analyses = {{"entropy", {{"p50_nats", 1}, {kHostile, 2}}, {{"head_mean_normalised", {0.5, 0.25}}}, {}},
                  {"receptive_field", {}, {{"fraction_mean", {0.5, 0.75}}}, {}},
                  {kHostile, {{kHostile, 1}}, {}, {}}};
  }
  for (ClaimResult& c : run.claims) {
    c.claim.id = c.claim.where = c.claim.published_text = c.reason = kHostile;
    c.claim.axes = {{kHostile, Value(kHostile)}};
  }
  run.environment.machine_id = kHostile;
  run.environment.values[kHostile] = kHostile;
  run.roofline.gflops["cpu/bf16/2/" + kHostile] = 10;
  run.roofline.measured_at = kHostile;
  return run;
}

/// A run of one method at sizes with given times.
RunResult scaling_run(const std::vector<std::pair<int64_t, double>>& points) {
  RunResult run = sample_run();
  run.cases.clear();
  for (const auto& [n, s] : points) {
    CaseResult c = sample_case_result("dense/length=" + std::to_string(n));
    c.spec.base_name = "dense";
    c.spec.axes = {{"problem.length", Value(n)}};
    c.spec.problem = {};
    c.spec.problem.length = n;
    c.time->median_s = s, c.time->ci_low_s = s * 0.9, c.time->ci_high_s = s * 1.1;
    run.cases.push_back(c);
  }
  return run;
}

}  // namespace

TEST_CASE("text is escaped for HTML and XML") {
  CHECK(html_escaped("a<b>&\"'") == "a&lt;b&gt;&amp;&quot;&#39;");
  CHECK(html_escaped("\x1b[0m\n\xff") == "\\x1b[0m\\n\\xff");
  CHECK(html_escaped("größer 注意 שלום 🚀") == "größer 注意 שלום 🚀");
  CHECK(html_escaped("\xe2\x80\xae") == "\\u202e");
  CHECK(html_name("<") == "<bdi>&lt;</bdi>");
  CHECK(xml_escaped("a\xef\xbf\xbe\xef\xbf\xbf\xef\xbf\xbd") == "a\\ufffe\\uffff\xef\xbf\xbd");
}

TEST_CASE("sha-256 in base64 is that of FIPS 180-4") {
  // The standard's examples; the digests are in hexadecimal there.
  CHECK(sha256_base64("abc") == "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
  CHECK(sha256_base64("") == "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
  CHECK(sha256_base64("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "JI1qYdIGOLjlwCaTDD5gOaM85Flk/yFn9uzt1BnbBsE=");
}

TEST_CASE("a page permits its own script and nothing else") {
  const std::string page = html_page({.title = kHostile,
                                      .headline = "h",
                                      .subtitle = "",
                                      .sections = {},
                                      .crumbs = "",
                                      .body = "",
                                      .foot = ""});
  CHECK_THAT(page, ContainsSubstring("default-src 'none'"));
  CHECK_THAT(page,
             ContainsSubstring("script-src 'sha256-" + sha256_base64(std::string(page_script())) + "'"));
  CHECK(markup::problems(page).empty());
}

TEST_CASE("ticks are round numbers inside their range") {
  CHECK(round_ticks(0, 1, false, 5) == std::vector<double>{0, 0.2, 0.4, 0.6000000000000001, 0.8, 1});
  CHECK(round_ticks(-3, 7, false, 5) == std::vector<double>{-2, 0, 2, 4, 6});
  CHECK(round_ticks(0.9, 1100, true, 5) == std::vector<double>{1, 10, 100, 1000});
  CHECK(round_ticks(1, 30, true, 6) == std::vector<double>{1, 2, 5, 10, 20});
  CHECK(round_ticks(2.1, 2.9, true, 4).size() >= 2);  // no decade inside
  CHECK(round_ticks(1, 1, false, 5).empty());
  CHECK(round_ticks(NAN, 1, false, 5).empty());
  CHECK(round_ticks(0, 1, true, 5).empty());
  for (double low : {1e-300, 3e-7, 0.5, 7e11})
    for (double factor : {1.0001, 1.5, 40.0, 1e9})
      for (bool log : {false, true}) {
        const auto ticks = round_ticks(low, low * factor, log, 5);
        CHECK(ticks.size() <= 16);
        for (double t : ticks) CHECK((t >= low * 0.999999 && t <= low * factor * 1.000001));
      }
  CHECK(round_ticks(4000, 8300, false, 4, AxisUnit::bytes) == std::vector<double>{4096, 6144, 8192});
  CHECK(tick_text(1e-4, AxisUnit::seconds) == "100 us");
  CHECK(tick_text(0, AxisUnit::seconds) == "0");
  CHECK(tick_text(2.5, AxisUnit::seconds) == "2.5 s");
  CHECK(tick_text(1 << 20, AxisUnit::bytes) == "1 MiB");
  CHECK(tick_text(0.25, AxisUnit::share) == "25%");
  CHECK(tick_text(2e9, AxisUnit::plain) == "2 G");
}

TEST_CASE("charts are well-formed, hold every point, and survive what cannot be drawn") {
  XyChart chart;
  chart.title = kHostile;
  chart.x = {.title = kHostile, .log = true};
  chart.y = {.title = "time", .log = true, .unit = AxisUnit::seconds};
  ChartSeries s{.name = kHostile, .style = 3, .points = {}};
  for (int i = 1; i <= 5; ++i) s.points.push_back({double(i), i * 1e-3, i * 0.9e-3, i * 1.1e-3, kHostile});
  s.points.push_back({0, 1, NAN, NAN, ""});    // no place on a logarithmic axis
  s.points.push_back({3, NAN, NAN, NAN, ""});  // breaks the line
  s.points.push_back({6, INFINITY, NAN, NAN, ""});
  chart.series = {s};
  chart.rules = {{2, true, kHostile, kHostile, "change"}, {99, true, "outside", "", "rule"}};
  chart.strokes = {{1, 1e-3, 1e6, 1e3, kHostile, "fit"}};
  const std::string svg = chart.svg();
  INFO(svg);
  CHECK(markup::problems(svg).empty());
  CHECK(markup::count(svg, "class=\"mark\"") == 5);
  CHECK(markup::count(svg, "class=\"whisker\"") == 5);
  CHECK(svg.find("nan") == std::string::npos);
  CHECK(svg.find("inf") == std::string::npos);
  CHECK(svg.find("outside") == std::string::npos);
  CHECK(markup::problems(chart_legend(chart)).empty());
  chart.series[0].points = {{1, NAN, NAN, NAN, ""}};
  CHECK(chart.svg().empty());
  // One point has no extent; it is drawn all the same.
  chart.series[0].points = {{1, 1, NAN, NAN, ""}};
  CHECK(markup::count(chart.svg(), "class=\"mark\"") == 1);

  BarChart bars;
  bars.title = kHostile;
  bars.rows = {{kHostile, {{2, "good", kHostile}}, 1.5, 1e9, kHostile},
               {"zero", {{0, "plain", ""}}, NAN, NAN, ""},
               {"nan", {{NAN, "plain", ""}}, NAN, NAN, ""}};
  for (bool log : {false, true}) {
    bars.axis.log = log;
    bars.origin = log ? 1 : 0;
    INFO(bars.svg());
    CHECK(markup::problems(bars.svg()).empty());
    CHECK(markup::count(bars.svg(), "<rect") == 2);
    CHECK(bars.svg().find("nan\"") == std::string::npos);
  }
  bars.rows.clear();
  CHECK(bars.svg().empty());

  BoxChart boxes;
  boxes.rows = {{kHostile, 0, 1, 2, 3, 4, 2.5, 0, kHostile}, {"n", NAN, NAN, NAN, NAN, NAN, NAN, 0, ""}};
  CHECK(markup::problems(boxes.svg()).empty());
  CHECK(markup::count(boxes.svg(), "class=\"median\"") == 1);
}

TEST_CASE("a longer bar is a larger value, and whiskers end where the interval does") {
  BarChart bars;
  bars.rows = {{"a", {{1, "plain", ""}}, 0.5, 1.5, ""}, {"b", {{2, "plain", ""}}, NAN, NAN, ""}};
  bars.axis.from = 0;
  const std::string svg = bars.svg();
  const std::vector<double> widths = markup::numbers(svg, "<rect class=\"bar plain\" x=\"", " width=\"");
  REQUIRE(widths.size() == 2);
  CHECK(widths[1] == Approx(2 * widths[0]).margin(0.15));
  // "M a y H b": from half to three halves of the first bar.
  const size_t at = svg.find("class=\"whisker\" d=\"M");
  REQUIRE(at != std::string::npos);
  double a = 0, y = 0, b = 0;
  REQUIRE(std::sscanf(svg.c_str() + at, "class=\"whisker\" d=\"M%lf %lfH%lf", &a, &y, &b) == 3);
  CHECK(b - a == Approx(widths[0]).margin(0.15));
}

TEST_CASE("heat maps have a cell a value, deeper for more, and a key of their ends") {
  HeatMap map;
  map.title = map.x_title = map.y_title = kHostile;
  map.rows = {{0, 0.5, 1}, {NAN, 0.25, 0.75}};
  map.row_labels = {kHostile, "b"};
  map.unit = AxisUnit::share;
  const std::string svg = map.svg();
  INFO(svg);
  CHECK(markup::problems(svg).empty());
  CHECK(markup::count(svg, "class=\"heat") == 6 + 8);  // and the key
  CHECK(markup::count(svg, "class=\"heat none\"") == 1);
  CHECK(svg.find("nan") == std::string::npos);
  CHECK_THAT(svg, ContainsSubstring(">100%<"));
  // 0.04 + 0.96 v: the palest is no empty cell.
  for (const char* deep : {"fill-opacity=\"0.04\"", "fill-opacity=\"0.28\"", "fill-opacity=\"0.52\"",
                           "fill-opacity=\"0.76\"", "fill-opacity=\"1.00\""})
    CHECK_THAT(svg, ContainsSubstring(deep));
  map.from = 0, map.to = 2;  // values keep their place between given ends
  CHECK_THAT(map.svg(), ContainsSubstring("fill-opacity=\"0.52\""));
  CHECK_THAT(map.svg(), ContainsSubstring(">200%<"));
  map.rows = {{3, 3}};
  map.from = map.to = NAN;
  CHECK(markup::problems(map.svg()).empty());
  map.rows = {{NAN}};
  CHECK(map.svg().empty());
  map.rows = {};
  CHECK(map.svg().empty());
  map.rows.assign(100, std::vector<double>(100, 1.0));
  CHECK(map.svg().empty());
}

TEST_CASE("heads of several layers are maps and curves over depth; those of one layer are not") {
  RunResult run = sample_run();
  run.cases.resize(1);
  run.claims.clear();
  CaseResult& c = run.cases[0];
  c.spec.problem.heads = 2;
  c.analyses = {{"entropy", {}, {{"head_mean_normalised", {0.1, 0.2, 0.3, 0.5, 0.8, NAN}}}, {}},
                {"attention_distance",
                 {},
                 {{"head_mean_distance", {1, 2, 3, 4, 5, 6}},
                  {"mass_by_octave", {0.5, 0.5}},
                  {"octave_map", {1, 0, 0.5, 0.5, 0, 1, 0, 1, 0.25, 0.75, 0.75, 0.25}}},
                 {}},
                {"sinks",
                 {},
                 {{"head_sinks", {1, 0, 0, 0, 0, 0}},
                  {"key_score", std::vector<double>(8, 0.1)},
                  {"sink_map", {0.9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}},
                 {}}};
  const std::string page = find_format("html").write(run);
  const auto problems = markup::problems(page);
  INFO((problems.empty() ? "" : problems.front()));
  CHECK(problems.empty());
  for (const char* text :
       {"Entropy by depth", "layer 1: 0.4 [0.3, 0.5]", "layer 2: 0.8 [0.8, 0.8]", "Distance by depth",
        "Entropy of heads, hilo", "Distance of attention by layer, hilo", "layer 0, 1 to 2 tokens: 25%",
        "layer 2, below 1 tokens: 50%", "Sinks, hilo",
        "layer.head 0.0, keys, by the first of their range 0: 0.9",
        "layer.head 2.1, keys, by the first of their range 4: 0"})
    CHECK_THAT(page, ContainsSubstring(text));
  CHECK(page.find("Entropy by head") == std::string::npos);

  c.spec.problem.heads = 6;
  const std::string one = find_format("html").write(run);
  CHECK(one.find("Entropy by depth") == std::string::npos);
  CHECK(one.find("Entropy of heads") == std::string::npos);
  CHECK_THAT(one, ContainsSubstring("Entropy by head"));
  CHECK_THAT(one, ContainsSubstring("Sinks, hilo"));

  // Series that do not fit each other, as a damaged file may hold, draw nothing.
  c.analyses[1].series["octave_map"] = {1, 2, 3};
  c.analyses[2].series["sink_map"] = {1, 2, 3, 4};
  c.spec.problem.heads = 2;
  const std::string damaged = find_format("html").write(run);
  CHECK(markup::problems(damaged).empty());
  CHECK(damaged.find("Distance of attention by layer") == std::string::npos);
  CHECK(damaged.find("Sinks, hilo") == std::string::npos);

  c.status = CaseStatus::unverified;
  c.time.reset(), c.verification.reset();
  CHECK_THAT(find_format("html").write(run), ContainsSubstring("analysed only"));
}

TEST_CASE("the exponent of a power law is found with Student's interval") {
  const auto exact = fit_power({1, 2, 4, 8}, {3, 12, 48, 192});
  REQUIRE(exact);
  CHECK(exact->exponent == Approx(2));
  CHECK(exact->high - exact->low == Approx(0).margin(1e-9));
  CHECK(exact->at(16) == Approx(768));
  // By hand, in logarithms to base 2: x = 0, 1, 2 and y = 0, 1, 3. Slope 1.5, residual sum 1/6 in those
  // units, standard error sqrt(1/6 / 1 / 2), t(1 degree, 95%) = 12.7062.
  const auto three = fit_power({1, 2, 4}, {1, 2, 8});
  REQUIRE(three);
  CHECK(three->exponent == Approx(1.5));
  CHECK(three->high - 1.5 == Approx(12.7062 * std::sqrt(1.0 / 12)).epsilon(1e-4));
  CHECK(!fit_power({1, 2, 2}, {1, 2, 3}));
  CHECK(!fit_power({1, 2, 4}, {1, NAN, 3}));
  CHECK(!fit_power({}, {}));
}

TEST_CASE("cases that differ in size only make a series") {
  RunResult run = scaling_run({{1024, 4e-3}, {256, 1e-3}, {512, 2e-3}});
  for (int64_t batch : {1, 2}) {
    CaseResult c = run.cases[0];
    c.spec.base_name = "other";
    c.spec.axes["problem.batch"] = Value(batch);
    run.cases.push_back(c);  // one size each: no series
  }
  const auto all = scaling_series(run);
  REQUIRE(all.size() == 1);
  CHECK(all[0].name == "dense");
  REQUIRE(all[0].cases.size() == 3);
  CHECK(size_of(all[0].cases[0]->spec.problem) == 256);
  REQUIRE(all[0].fit);
  CHECK(all[0].fit->exponent == Approx(1));
  Problem decode;
  decode.length = 1, decode.kv_length = 4096;
  CHECK(size_of(decode) == 4096);
  Problem image;
  image.kind = ProblemKind::image;
  image.grid = {14, 14};
  CHECK(size_of(image) == 196);
  image.grid.clear(), image.size = {224, 224};
  CHECK(size_of(image) == 224 * 224);
  CHECK(axes_text({{"problem.length", 4}, {"params.window", 2}}) == "window=2 length=4");
  CHECK(axes_text({{"problem.length", 4}, {"params.window", 2}}, false) == "window=2");
}

TEST_CASE("the report page is well-formed and holds its charts, figures and reasons") {
  const std::string page = find_format("html").write(sample_run());
  const auto problems = markup::problems(page);
  INFO((problems.empty() ? "" : problems.front()));
  CHECK(problems.empty());
  for (const char* text : {"HiLo against others", "EPYC, 2 cores", "Speed-up against sra", "Roofline: cpu",
                           "1.449x", "method &#39;sra&#39; does not run in bf16", "not evaluated",
                           "suite: hilo_cpu", "the clock moved", "2 of 3", "interrupted"})
    CHECK_THAT(page, ContainsSubstring(text));
  // Nothing is fetched.
  for (const char* text : {"http://", "https://", "src=", "url("})
    CHECK(page.find(text) == std::string::npos);
  const std::string scaling =
      find_format("html").write(scaling_run({{256, 1e-3}, {512, 4e-3}, {1024, 16e-3}}));
  CHECK_THAT(scaling, ContainsSubstring("dense: N^2.00 [2.00, 2.00]"));
  RunResult wrong = sample_run();
  for (CaseResult& c : wrong.cases) c.status = CaseStatus::inconsistent;
  CHECK(find_format("html").write(wrong).find("Roofline: cpu") == std::string::npos);  // rates are withheld
  CHECK_THAT(find_format("html").write(RunResult{}), ContainsSubstring("No case was measured"));
  CHECK(markup::problems(find_format("html").write(RunResult{})).empty());
}

TEST_CASE("nothing that a results file contains becomes markup") {
  const std::string page = find_format("html").write(hostile_run());
  const auto problems = markup::problems(page);
  INFO((problems.empty() ? "" : problems.front()));
  CHECK(problems.empty());
  CHECK(markup::count(page, "<script") == 1);  // its own
  CHECK(page.find("<img") == std::string::npos);
  CHECK(page.find("onerror=alert(1)>") == std::string::npos);
  CHECK(page.find("\xe2\x80\xae") == std::string::npos);
  CHECK(page.find('\x1b') == std::string::npos);
  CHECK_THAT(page, ContainsSubstring("\xf0\x9f\x9a\x80"));
  CHECK_THAT(page, ContainsSubstring("&lt;/script&gt;&lt;script&gt;alert(1)"));
}

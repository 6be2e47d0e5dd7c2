// Pages in headless Chromium: rendered, clicked, reached by keyboard, readable at the width of a phone,
// without console errors and without a network. browser.py drives; without Chromium or Python the tests say
// so and are counted as skipped.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "report/dashboard.hpp"
#include "report/format.hpp"
#include "tests/catch.hpp"
#include "tests/cli/drive.hpp"
#include "tests/report/sample_history.hpp"

using namespace attnbench;
namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

namespace {

std::string find_program(std::initializer_list<const char*> names) {
  const char* path = std::getenv("PATH");
  for (const char* name : names) {
    std::istringstream folders(path ? path : "");
    for (std::string folder; std::getline(folders, folder, ':');)
      if (access((folder + "/" + name).c_str(), X_OK) == 0) return folder + "/" + name;
  }
  return "";
}

/// Empty, and says why, where there is no browser.
std::vector<std::string> browser_command() {
  const std::string chromium = find_program({"chromium", "chromium-browser", "google-chrome"});
  const std::string python = find_program({"python3"});
  if (chromium.empty() || python.empty()) {
    std::printf("browser tests skipped: no %s in PATH (Debian: apt-get install chromium python3)\n",
                chromium.empty() ? "chromium" : "python3");
    return {};
  }
  return {python, std::string(ATTNBENCH_SOURCE_DIR) + "/tests/report/browser.py", chromium};
}

void require_steps(const drive::TempFolder& folder, Json steps) {
  std::vector<std::string> command = browser_command();
  if (command.empty()) return;
  static int shots = 0;
  if (const char* kept = std::getenv("ATTNBENCH_SHOTS"))
    for (size_t i = steps.size(); i-- > 0;)
      if (steps[i].contains("open"))
        steps.insert(steps.begin() + static_cast<std::ptrdiff_t>(i) + 1,
                     Json{{"shot", std::string(kept) + "/shot" + std::to_string(++shots) + ".png"}});
  const std::string file = folder / "steps.json";
  drive::write(file, steps.dump(-1, ' ', false, Json::error_handler_t::replace));
  command.push_back(file);
  const drive::Result r = drive::Process(command, {}).wait();
  INFO(r.out << r.err);
  REQUIRE(r.code == 0);
  // The driver must have come to the end.
  REQUIRE_THAT(r.out, ContainsSubstring(std::to_string(steps.size()) + " steps, 0 failures"));
}

std::string url(const fs::path& p) { return "file://" + p.string(); }

/// A run with sizes, stages, analyses and claims, so that every part of the page is there.
RunResult full_run(const std::string& hostile) {
  RunResult run = sample_run();
  run.suite.title += hostile;
  run.cases.clear();
  for (const char* base : {"dense", "window", "linear"})
    for (int64_t n : {256, 512, 1024, 2048}) {
      CaseResult c = sample_case_result(base + ("/length=" + std::to_string(n)) + hostile);
      c.spec.base_name = base + hostile;
      c.spec.axes = {{"problem.length", Value(n)}};
      c.spec.problem = {};
      c.spec.problem.length = n;
      const double power = base[0] == 'd' ? 2 : 1;
      const double t = 1e-6 * std::pow(static_cast<double>(n) / 256, power) * (base[0] == 'w' ? 3 : 2);
      *c.time = Timing{t, t * 0.98, t * 1.03, t, t, t, t * 0.01, t, 20, 1, true, {}, ""};
      c.bound = Bound{100 + static_cast<double>(n) / 10, 10, 4 + static_cast<double>(n) / 50, "compute", 40};
      c.analyses = {{"entropy",
                     {{"p5_nats", 1},
                      {"p25_nats", 2},
                      {"p50_nats", 2.5},
                      {"p75_nats", 3},
                      {"p95_nats", 4},
                      {"mean_nats", 2.6},
                      {"mean_normalised", 0.5}},
                     {{"head_mean_normalised", {0.4, 0.5, 0.6}}},
                     {}},
                    {"receptive_field", {}, {{"fraction_mean", {0.25, 0.5, 0.75, 1}}}, {}}};
      if (!hostile.empty()) c.warnings = {hostile};
      run.cases.push_back(c);
    }
  run.roofline.gflops = {{"cpu/f32/2", 500}, {"cpu/f32/2/gemm", 480}};
  run.roofline.gbytes_per_s = {{"cpu/2", 50}, {"cpu/2/l2", 200}};
  run.environment.values["threads"] = 2;
  return run;
}

const char* kFirstCase = "document.querySelector('#cases tbody tr:not([hidden]) th').textContent";

}  // namespace

TEST_CASE("the report page in a browser") {
  const drive::TempFolder folder;
  const fs::path page = folder / "page.html";
  drive::write(page, find_format("html").write(full_run("")));
  const std::string head = "#cases thead th:nth-child(2) button";  // the time
  Json steps = Json::array();
  steps.push_back({{"open", url(page)}});
  steps.push_back({{"eval", "document.querySelectorAll('figure svg.chart').length"}, {"is", 13}});
  // No text runs out of its chart, and no chart out of its page.
  steps.push_back({{"eval",
                    "[...document.querySelectorAll('svg.chart')].every(s=>{const a=s.getBoundingClientRect();"
                    "return [...s.querySelectorAll('text')].every(t=>{const b=t.getBoundingClientRect();"
                    "return b.left>=a.left-2&&b.right<=a.right+2&&b.top>=a.top-2&&b.bottom<=a.bottom+2})})"},
                   {"is", true}});
  steps.push_back({{"eval", "document.documentElement.scrollWidth"}, {"is", 1200}});
  // Sorting: up, then down.
  steps.push_back({{"click", head}});
  steps.push_back({{"eval", kFirstCase}, {"is", "dense/length=256"}});
  steps.push_back({{"eval", "document.querySelector('#cases th[aria-sort]').getAttribute('aria-sort')"},
                   {"is", "ascending"}});
  steps.push_back({{"click", head}});
  steps.push_back({{"eval", kFirstCase}, {"is", "dense/length=2048"}});
  // By keyboard: '/' goes to the filter, what is typed there filters.
  steps.push_back({{"key", "/"}});
  steps.push_back({{"eval", "document.activeElement.type"}, {"is", "search"}});
  for (const char* key : {"w", "i", "n", "d", "o", "w"}) steps.push_back({{"key", key}});
  steps.push_back({{"eval", "document.querySelectorAll('#cases tbody tr:not([hidden])').length"}, {"is", 4}});
  steps.push_back({{"eval", "document.querySelector('[data-count]').textContent"}, {"is", "4 of 12"}});
  // From the top: the first stop is the way past the navigation; heads of tables are stops and sort by Enter.
  steps.push_back({{"open", url(page)}});
  steps.push_back({{"key", "Tab"}});
  steps.push_back({{"eval", "document.activeElement.className"}, {"is", "skip"}});
  steps.push_back({{"eval", "document.querySelector('#cases thead th:nth-child(2) button').focus()"}});
  steps.push_back({{"key", "Enter"}});
  steps.push_back({{"eval", kFirstCase}, {"is", "dense/length=256"}});
  // Themes: the button turns the system's one around.
  const char* ground = "getComputedStyle(document.body).backgroundColor";
  steps.push_back({{"eval", ground}, {"is", "rgb(251, 251, 250)"}});
  steps.push_back({{"click", "#theme"}});
  steps.push_back({{"eval", ground}, {"is", "rgb(20, 23, 27)"}});
  steps.push_back({{"click", "#theme"}});
  steps.push_back({{"eval", "localStorage.removeItem('attnbench-theme')"}});
  steps.push_back({{"open", url(page)}, {"dark", true}});
  steps.push_back({{"eval", ground}, {"is", "rgb(20, 23, 27)"}});
  // A phone: nothing is wider than the screen, texts of charts are readable.
  steps.push_back({{"open", url(page)}, {"width", 390}, {"height", 800}});
  steps.push_back({{"eval", "document.documentElement.scrollWidth"}, {"is", 390}});
  steps.push_back(
      {{"eval",
        "[...document.querySelectorAll('svg.chart text')].filter(t=>t.getBoundingClientRect().height>0)"
        ".every(t=>parseFloat(getComputedStyle(t).fontSize)*t.ownerSVGElement.getBoundingClientRect().width/"
        "t.ownerSVGElement.viewBox.baseVal.width>=10)"},
       {"is", true}});
  require_steps(folder, steps);
}

TEST_CASE("the dashboard in a browser") {
  const drive::TempFolder folder;
  const fs::path site = folder / "site";
  fill_history(folder / "h.db", 120, false);
  write_dashboard(History(folder / "h.db"), site, {});
  Json steps = Json::array();
  steps.push_back({{"open", url(site / "index.html")}});
  steps.push_back({{"eval", "document.querySelector('#cases [data-count]').textContent"}, {"is", "6 of 6"}});
  steps.push_back({{"eval",
                    "(function(){var s=document.querySelector('#cases select');s.value='slower';"
                    "s.dispatchEvent(new Event('input',{bubbles:true}));"
                    "return document.querySelector('#cases [data-count]').textContent})()"},
                   {"is", "1 of 6"}});
  steps.push_back({{"click", "#cases tbody tr:not([hidden]) th a"}, {"loads", true}});
  steps.push_back({{"eval", "document.querySelector('h1').textContent"}, {"is", "steps"}});
  steps.push_back({{"eval", "document.querySelector('.tile b').textContent"}, {"is", "slower"}});
  // Wide screens show 90 runs, phones 30.
  const char* shown =
      "[...document.querySelectorAll('#series-1 figure.wide:first-of-type svg.chart')].filter(s=>"
      "s.getBoundingClientRect().height>0).map(s=>s.querySelectorAll('.mark').length).join()";
  steps.push_back({{"eval", shown}, {"is", "90"}});
  steps.push_back(
      {{"eval", "document.querySelector('figure.wide').getBoundingClientRect().width>1000"}, {"is", true}});
  // Rate and memory stand side by side.
  steps.push_back({{"eval",
                    "new Set([...document.querySelectorAll('#series-1 figure:not(.wide)')].map(f=>Math.round("
                    "f.getBoundingClientRect().top))).size"},
                   {"is", 1}});
  steps.push_back({{"click", ".crumbs a:nth-of-type(2)"}, {"loads", true}});
  steps.push_back({{"eval", "document.querySelector('h1').textContent"}, {"is", "A suite"}});
  steps.push_back({{"click", "#cases tbody tr th a"}, {"loads", true}});
  for (const fs::path& p : {site / "index.html", site / page_file("suite", "first", "first"),
                            site / page_file("case", "steps", "first\nfirststeps")})
    for (bool dark : {false, true})
      for (int width : {1200, 390}) {
        steps.push_back({{"open", url(p)}, {"width", width}, {"height", 800}, {"dark", dark}});
        steps.push_back({{"eval", "document.documentElement.scrollWidth"}, {"is", width}});
      }
  steps.push_back({{"eval", shown}, {"is", "30"}});
  require_steps(folder, steps);
}

TEST_CASE("texts that attack do nothing in a browser") {
  const drive::TempFolder folder;
  const fs::path page = folder / "page.html", site = folder / "site";
  drive::write(page, find_format("html").write(full_run(kAttack)));
  fill_history(folder / "h.db", 70, true);
  write_dashboard(History(folder / "h.db"), site, {.title = kAttack});
  Json steps = Json::array();
  std::vector<fs::path> pages{page};
  for (const auto& entry : fs::directory_iterator(site))
    if (entry.path().extension() == ".html") pages.push_back(entry.path());
  REQUIRE(pages.size() == 8);
  for (const fs::path& p : pages) {
    // A dialog, an exception, a request or a word on the console would each be a failure of the step.
    steps.push_back({{"open", url(p)}, {"width", 390}});
    steps.push_back(
        {{"eval",
          "document.scripts.length+' '+document.images.length+' '+document.documentElement.scrollWidth"},
         {"is", "1 0 390"}});
    steps.push_back(
        {{"eval", "document.querySelector('h1').textContent.includes('</script><script>alert(1)')"},
         {"is", true}});
  }
  require_steps(folder, steps);
}

// The command line as a whole: help, versions, wrong words, exit codes, clean data.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "methods/method.hpp"
#include "report/json_schema.hpp"
#include "report/schemas.hpp"
#include "tests/catch.hpp"
#include "tests/cli/drive.hpp"

using drive::program;
using nlohmann::json;

namespace {

const std::vector<std::string> kCommands{
    "report",  "dashboard", "run",      "list",      "describe", "verify",   "analyze",
    "apply",   "devices",   "roofline", "doctor",    "schema",   "validate", "completion",
    "compare", "check",     "history",  "calibrate", "merge",    "prove",    "sample"};

}  // namespace

TEST_CASE("without arguments the program explains itself") {
  const auto r = program({});
  CHECK(r.code == 0);
  CHECK(r.err.empty());
  for (const std::string& c : kCommands) CHECK_THAT(r.out, ContainsSubstring("\n  " + c + " "));
  CHECK_THAT(r.out, ContainsSubstring("Exit codes: 0 done"));
  CHECK(program({"--help"}).out == r.out);
}

TEST_CASE("every command has help with usage and examples") {
  for (const std::string& c : kCommands) {
    const auto r = program({c, "--help"});
    CAPTURE(c);
    CHECK(r.code == 0);
    CHECK(r.err.empty());
    CHECK_THAT(r.out, ContainsSubstring("Usage: attnbench " + c));
    CHECK_THAT(r.out, ContainsSubstring("Examples:\n  "));
    CHECK_THAT(r.out, ContainsSubstring("--json"));
  }
}

TEST_CASE("--version is one line and comes at once") {
  const auto start = std::chrono::steady_clock::now();
  constexpr int kRuns = 5;
  for (int i = 0; i < kRuns; ++i) {
    const auto r = program({"--version"});
    CHECK(r.code == 0);
    CHECK(r.out.rfind("attnbench ", 0) == 0);
    CHECK(std::count(r.out.begin(), r.out.end(), '\n') == 1);
  }
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
  // Start-up takes a few milliseconds; a second would mean that something is computed or opened at start-up.
  CHECK(spent.count() / kRuns < 1.0);
}

TEST_CASE("wrong words end with 2 and the nearest right one") {
  const auto check = [](std::vector<std::string> words, const std::string& message) {
    const auto r = program(words);
    CAPTURE(words, r.err);
    CHECK(r.code == 2);
    CHECK(r.out.empty());
    CHECK_THAT(r.err, ContainsSubstring(message));
  };
  check({"lst"}, "unknown command 'lst'; did you mean 'list'?");
  check({"frobnicate"}, "unknown command 'frobnicate'");
  check({"list", "--jsn"}, "unknown option '--jsn'; did you mean '--json'?");
  check({"run", "--fliter", "x"}, "did you mean '--filter'?");
  check({"--quite"}, "did you mean '--quiet'?");
  check({"list", "methods", "again"}, "unexpected argument 'again'");
  check({"list", "nonsense"}, "nonsense");
  check({"describe"}, "NAME is required");
  check({"describe", "dens"}, "there is no method, analysis or generator 'dens'; did you mean 'dense'?");
  check({"verify"}, "name methods, or give --all");
  check({"verify", "dens"}, "unknown method 'dens'; did you mean 'dense'?");
  check({"verify", "dense", "--dtype", "f33"}, "f33");
  check({"verify", "dense", "--threads", "0"}, "--threads");
  check({"verify", "dense", "--verify-budget", "0"}, "--verify-budget");
  check({"run", "hilo", "--verify-budget", "soon"}, "--verify-budget");
  check({"analyze", "dense", "--problem", "length"}, "'length' is not of the form key=value");
  check({"analyze", "dense", "--problem", "lenght=5"}, "did you mean 'length'?");
  check({"analyze", "dense", "--problem", "length=0"}, "at least 1 is wanted, not 0");
  check({"analyze", "dense", "--problem", "length=-3"}, "at least 1 is wanted, not -3");
  check({"analyze", "dense", "--problem", "length=99999999999999999999"}, "length");
  check({"analyze", "dense", "--problem", "length=many"}, "a whole number is wanted");
  check({"analyze", "dense", "--problem", "length=3", "length=4"}, "'length' is given twice");
  check({"analyze", "sliding_window", "--param", "windw=3"}, "did you mean 'window'?");
  check({"analyze", "dense", "--analysis", "entorpy"}, "did you mean 'entropy'?");
  check({"completion", "tcsh"}, "tcsh");
  check({"schema", "nothing"}, "nothing");
  check({"--color", "sometimes", "list"}, "sometimes");
}

TEST_CASE("a device that is not usable says why") {
  const auto r = program({"verify", "dense", "--device", "cuda"},
                         {.environment = {{"ATTNBENCH_CUDA_MODULE", "/nowhere/x.so"}}});
  CHECK(r.code == 3);
  CHECK_THAT(r.err, ContainsSubstring("/nowhere/x.so"));
  CHECK(program({"verify", "dense", "--device", "tpu"}).code == 2);
}

TEST_CASE("verify --report writes what a device was seen to do") {
  const drive::TempFolder folder;
  const std::string file = (folder / "report.json").string();
  const auto r = program({"verify", "dense", "--dtype", "f32,bf16", "--report", file, "--quiet"});
  CHECK(r.code == 0);
  const std::string text = drive::read(file);
  for (const std::string& v : attnbench::validate_json(attnbench::schemas().at("device_report"), text))
    FAIL_CHECK(v);
  const json j = json::parse(text);
  CHECK(j.at("device") == "cpu");
  CHECK(j.at("methods").size() == 2);
  CHECK(j.at("methods")[0].at("passed").get<int>() > 3);
  CHECK(j.at("passed") ==
        j.at("methods")[0].at("passed").get<int>() + j.at("methods")[1].at("passed").get<int>());
  CHECK(program({"verify", "dense", "--results", file}).code == 2);
  // A folder takes a file named after what ran.
  REQUIRE(program({"verify", "dense", "--report", (folder / "gpu/").string(), "--quiet"}).code == 0);
  int files = 0;
  for (const auto& e : std::filesystem::directory_iterator(folder / "gpu"))
    files += e.path().extension() == ".json";
  CHECK(files == 1);
  CHECK(program({"verify", "dense", "--report", "/no/such/folder/x.json"}).code == 2);
}

TEST_CASE("list --json names every method with what describe says of it") {
  const auto r = program({"list", "--json"});
  CHECK(r.code == 0);
  CHECK(r.err.empty());
  const json all = json::parse(r.out);
  std::set<std::string> ids;
  for (const json& m : all.at("methods")) {
    ids.insert(m.at("id"));
    CHECK_FALSE(m.at("title").get<std::string>().empty());
    CHECK(m.at("params").is_array());
    CHECK(m.at("dtypes").size() >= 1);
  }
  for (const attnbench::Method* m : attnbench::all_methods()) CHECK(ids.count(m->info().id) == 1);
  for (const char* id : {"naive", "dense", "sliding_window", "hilo", "lightning_attention", "mfm"})
    CHECK(ids.count(id) == 1);
  CHECK(all.at("generators").size() >= 3);
  CHECK(all.at("analyses").is_array());
  for (const json& s : all.at("suites")) CHECK(s.contains("file"));

  const json one = json::parse(program({"describe", "hilo", "--json"}).out);
  for (const json& m : all.at("methods"))
    if (m.at("id") == "hilo") CHECK(m == one);

  const auto only = program({"list", "methods", "--names"});
  std::istringstream lines(only.out);
  std::set<std::string> names;
  for (std::string line; std::getline(lines, line);) names.insert(line);
  CHECK(names == ids);
}

TEST_CASE("describe shows parameters, formulas and paper of every method") {
  for (const attnbench::Method* m : attnbench::all_methods()) {
    const auto r = program({"describe", m->info().id});
    CAPTURE(m->info().id);
    CHECK(r.code == 0);
    CHECK_THAT(r.out, ContainsSubstring("Parameters\n"));
    for (const attnbench::ParamSpec& p : m->info().params)
      CHECK_THAT(r.out, ContainsSubstring("\n  " + p.name + " "));
    CHECK(r.out.find('\033') == std::string::npos);  // no terminal, no colour
  }
  CHECK_THAT(program({"describe", "dense", "--color", "always"}).out, ContainsSubstring("\033[1m"));
  CHECK(program({"describe", "uniform"}).code == 0);
}

TEST_CASE("describe says of a suite which inputs its cases are drawn with") {
  const auto r = program({"describe", "papers/flexprefill.yaml"});
  CHECK(r.code == 0);
  CHECK_THAT(r.out, ContainsSubstring("vertical_slash (strength 13): flex_95, flex_90"));
  CHECK_THAT(program({"describe", "quickstart.yaml"}).out, ContainsSubstring("each input's own: all cases"));
  CHECK_THAT(r.out, ContainsSubstring("mass_recall (queries 32)"));
  CHECK_THAT(r.out, ContainsSubstring("gpu-128k-95"));
  const auto mixed = program({"describe", "suites/papers/rectified_spaattn.yaml"});
  CHECK_THAT(mixed.out, ContainsSubstring("space_time: hunyuan"));
  CHECK_THAT(mixed.out, ContainsSubstring("each input's own: dense"));
  const json j = json::parse(program({"describe", "suites/papers/rectified_spaattn.yaml", "--json"}).out);
  CHECK(j.at("suite") == "rectified_spaattn");
  CHECK(j.at("cases").size() > 4);
  for (const json& c : j.at("cases"))
    CHECK(c.at("inputs") == (c.at("method") == "dense" ? "each input's own" : "space_time"));
  const auto none = program({"describe", "papers/no_such.yaml"});
  CHECK(none.code == 2);
  CHECK_THAT(none.err, ContainsSubstring("no_such"));
}

TEST_CASE("devices, doctor and schemas print JSON and nothing else under --json") {
  const json devices = json::parse(program({"devices", "--json"}).out);
  CHECK(devices.at("devices").at(0).at("usable") == true);
  const json& cuda = devices.at("devices").at(1);
  CHECK((cuda.at("usable") == true || !cuda.at("reason").get<std::string>().empty()));

  const auto doctor = program({"doctor", "--json", "--noise", "0.05", "--quiet"});
  CHECK(doctor.err.empty());
  const json report = json::parse(doctor.out);
  bool bad = false;
  for (const json& f : report.at("findings")) bad |= f.at("level") == "bad";
  CHECK(doctor.code == (bad ? 1 : 0));
  CHECK(report.at("noise").at("samples").get<int>() > 0);
  CHECK(report.at("noise").at("spread").get<double>() >= 0);

  CHECK(json::parse(program({"schema", "results"}).out).contains("$schema"));
}

TEST_CASE("analyze and verify keep stdout clean under --json") {
  const auto v = program({"verify", "mfm", "--json"});
  CAPTURE(v.err);
  CHECK(v.code == 0);
  const json checks = json::parse(v.out);
  CHECK(checks.at("passed").get<int>() >= 1);
  CHECK(checks.at("failed") == 0);
  CHECK(checks.at("checks").at(0).at("tolerance") == 1e-5);
}

TEST_CASE("data that cannot be written is a failure") {
  const auto r = program({"list"}, {.stdout_to = "/dev/full"});
  CHECK(r.code == 3);
  CHECK_THAT(r.err, ContainsSubstring("writing to stdout failed: No space left on device"));
}

TEST_CASE("a stderr that is full changes nothing") {
  drive::TempFolder folder;
  const std::string out = (folder / "out").string();
  const auto r =
      drive::Process({"sh", "-c", "\"$1\" list nonsense 2>/dev/full >\"$2\"", "sh", ATTNBENCH_PROGRAM, out},
                     {})
          .wait();
  CHECK(r.code == 2);
  CHECK(drive::read(out).empty());
}

TEST_CASE("the suite in the README is valid, and the commands it shows exist") {
  const std::string readme = drive::read(std::string(ATTNBENCH_SOURCE_DIR) + "/README.md");
  const size_t begin = readme.find("```yaml\n"), end = readme.find("\n```\n", begin);
  REQUIRE(begin != std::string::npos);
  REQUIRE(end != std::string::npos);
  drive::TempFolder folder;
  drive::write(folder / "readme.yaml", readme.substr(begin + 8, end - begin - 7));
  const auto r = program({"validate", (folder / "readme.yaml").string()});
  CAPTURE(r.err);
  CHECK(r.code == 0);
  const std::set<std::string> known(kCommands.begin(), kCommands.end());
  size_t shown = 0;
  for (size_t at = 0; (at = readme.find("    ./attnbench ", at)) != std::string::npos; ++shown) {
    at += std::string("    ./attnbench ").size();
    const std::string word = readme.substr(at, readme.find_first_of(" \n", at) - at);
    CHECK((known.count(word) == 1 || word == "test"));
  }
  CHECK(shown >= 4);
}

TEST_CASE("completion scripts are valid and complete") {
  drive::TempFolder folder;
  for (const std::string shell : {"bash", "zsh", "fish"}) {
    const auto r = program({"completion", shell});
    REQUIRE(r.code == 0);
    for (const std::string& c : kCommands) CHECK_THAT(r.out, ContainsSubstring(c));
    drive::write(folder / shell, r.out);
    if (std::system(("command -v " + shell + " >/dev/null 2>&1").c_str()) != 0) continue;
    CAPTURE(shell);
    CHECK(std::system((shell + " -n '" + (folder / shell).string() + "'").c_str()) == 0);
  }
  const std::string ask = "source '" + (folder / "bash").string() +
                          "'; compopt() { :; }; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _attnbench; "
                          "printf '%s\\n' \"${COMPREPLY[@]}\"";
  const auto complete = [&](std::vector<std::string> words) {
    std::vector<std::string> command{"bash", "-c", ask, "bash", ATTNBENCH_PROGRAM};
    command.insert(command.end(), words.begin(), words.end());
    std::istringstream lines(drive::Process(command, {}).wait().out);
    std::vector<std::string> replies;
    for (std::string line; std::getline(lines, line);)
      if (!line.empty()) replies.push_back(line);
    return replies;
  };
  using Words = std::vector<std::string>;
  CHECK(complete({"desc"}) == Words{"describe"});
  CHECK(complete({"describe", "lightn"}) == Words{"lightning_attention"});
  CHECK(complete({"apply", "--device", ""}) == Words{"cpu", "cuda"});
  CHECK(complete({"run", "--resu"}) == Words{"--resume"});
  CHECK(complete({"completion", "f"}) == Words{"fish"});
  CHECK(complete({"list", "meth"}) == Words{"methods"});
}

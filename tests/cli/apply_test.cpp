// apply as a user checks a method against other code: cases, checks, bad files.
#include <nlohmann/json.hpp>

#include "inputs/inputs.hpp"
#include "tests/catch.hpp"
#include "tests/cli/drive.hpp"

using drive::program;
using nlohmann::json;

namespace {

const std::string kOracles = std::string(ATTNBENCH_SOURCE_DIR) + "/tests/golden/oracles/";

}  // namespace

TEST_CASE("apply runs an oracle's case and compares") {
  drive::TempFolder folder;
  const std::string out = (folder / "out.safetensors").string();
  const std::string base = kOracles + "lightning_attention/1";
  const auto r = program(
      {"apply", "--case", base + ".json", "--output", out, "--check", base + ".out.safetensors", "--json"});
  CAPTURE(r.err, r.out);
  REQUIRE(r.code == 0);
  const json report = json::parse(r.out);
  CHECK(report.at("method") == "lightning_attention");
  REQUIRE(report.at("checks").size() >= 1);
  for (const json& c : report.at("checks")) {
    CHECK(c.at("passed") == true);
    CHECK(c.at("error").get<double>() <= c.at("tolerance").get<double>());
  }

  SECTION("what it wrote passes its own check to the bit") {
    const auto again = program({"apply", "--case", base + ".json", "--check", out, "--json"});
    CHECK(again.code == 0);
    const json report = json::parse(again.out);
    for (const json& c : report.at("checks")) CHECK(c.at("error") == 0.0);
  }
  SECTION("an impossible tolerance is a no, with the worst element") {
    const auto no = program(
        {"apply", "--case", base + ".json", "--check", base + ".out.safetensors", "--tolerance", "1e-30"});
    CHECK(no.code == 1);
    CHECK_THAT(no.out, ContainsSubstring("FAILED"));
    CHECK_THAT(no.out, ContainsSubstring(" instead of "));
  }
  SECTION("tensors given by name need no case file") {
    const json c = json::parse(drive::read(base + ".json"));
    std::vector<std::string> words{
        "apply", "lightning_attention", "--input", base + ".in.safetensors", "--check", out};
    words.emplace_back("--param");
    for (const auto& [key, value] : c.at("params").items()) words.push_back(key + "=" + value.dump());
    words.emplace_back("--problem");
    for (const auto& [key, value] : c.at("problem").items())
      words.push_back(key + "=" + (value.is_string() ? value.get<std::string>() : value.dump()));
    const auto same = program(words);
    CAPTURE(same.err);
    CHECK(same.code == 0);
  }
}

TEST_CASE("apply refuses what it cannot read, and says which file") {
  drive::TempFolder folder;
  const std::string out = (folder / "out.safetensors").string();
  const auto refused = [&](std::vector<std::string> words, const std::string& message) {
    const auto r = program(words);
    CAPTURE(words, r.err);
    CHECK(r.code == 2);
    CHECK(r.out.empty());
    CHECK_THAT(r.err, ContainsSubstring(message));
    CHECK_FALSE(drive::fs::exists(out));
  };
  const std::string bad = (folder / "bad.safetensors").string();
  refused({"apply", "dense", "--input", (folder / "none.safetensors").string(), "--output", out},
          "none.safetensors");
  drive::write(bad, "");
  refused({"apply", "dense", "--input", bad, "--output", out}, "bad.safetensors");
  drive::write(bad, std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8) + "{}");
  refused({"apply", "dense", "--input", bad, "--output", out}, "bad.safetensors");
  const std::string whole = drive::read(kOracles + "lightning_attention/1.in.safetensors");
  drive::write(bad, whole.substr(0, whole.size() - 16));
  refused({"apply", "lightning_attention", "--input", bad, "--output", out}, "bad.safetensors");
  refused({"apply", "--case", (folder / "none.json").string(), "--output", out}, "none.json");
  drive::write(folder / "case.json", "{ not json");
  refused({"apply", "--case", (folder / "case.json").string(), "--output", out}, "case.json");
  refused({"apply", "dense"}, "give --output FILE, --check FILE, or both");
  refused({"apply", "--output", out}, "name a method, or give --case FILE");
  refused({"apply", "dense", "--case", "x.json", "--output", out}, "leave them out");
  refused({"apply", "dense", "--output", (folder / "no").string() + "/such/out.safetensors"},
          "there is no folder");
}

TEST_CASE("apply leaves nothing behind when the disk is full") {
  drive::TempFolder folder;
  const std::string out = (folder / "out.safetensors").string();
  const std::string base = kOracles + "lightning_attention/1";
  const auto r = program({"apply", "--case", base + ".json", "--output", out}, {.max_file_bytes = 1024});
  CAPTURE(r.err);
  CHECK(r.code == 3);
  CHECK_THAT(r.err, ContainsSubstring("out.safetensors"));
  CHECK(drive::fs::is_empty(folder.path()));
}

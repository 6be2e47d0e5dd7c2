// simulate as a user asks it: the paper's figures, single values for all axes, sweeps, refusals.
#include <nlohmann/json.hpp>

#include "tests/catch.hpp"
#include "tests/cli/drive.hpp"

using drive::program;
using nlohmann::json;

TEST_CASE("simulate gna prints the figures of the paper") {
  const std::vector<std::string> words{"simulate",  "gna",      "--extents", "30,48,80",          "--window",
                                       "18,24,24",  "--stride", "16,8,8",    "--q-tile",          "4,8,8",
                                       "--kv-tile", "2,8,8",    "--json",    "--attention-share", "0.607"};
  const auto r = program(words);
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  const json j = json::parse(r.out);
  CHECK(j.at("visited_max") == 81);
  CHECK(j.at("total") == 900);
  CHECK(j.at("visited_max_per_axis") == std::vector<int64_t>{9, 3, 3});
  CHECK(j.at("S_sim").get<double>() == Approx(100.0 / 9));
  CHECK(j.at("end_to_end_bound").get<double>() == Approx(2.23399).epsilon(1e-5));
  CHECK(j.at("block_sparse") == true);
  std::vector<std::string> plain = words;
  std::erase(plain, "--json");
  const auto text = program(plain);
  CHECK(text.code == 0);
  CHECK_THAT(text.out, ContainsSubstring("81/900"));
  CHECK_THAT(text.out, ContainsSubstring("11.11"));
}

TEST_CASE("one value stands for every axis, and dilation, causal axes and flat tiles are understood") {
  const auto all = program({"simulate", "gna", "--extents", "24,20", "--window", "6", "--stride", "2",
                            "--q-tile", "8,8", "--kv-tile", "8,8", "--json"});
  const auto each = program({"simulate", "gna", "--extents", "24,20", "--window", "6,6", "--stride", "2,2",
                             "--q-tile", "8,8", "--kv-tile", "8,8", "--json"});
  REQUIRE(all.code == 0);
  CHECK(all.out == each.out);
  const auto flat = program({"simulate", "gna", "--extents", "24,20", "--window", "7,6", "--stride", "3,2",
                             "--tiling", "single_dim", "--q-tile", "64", "--kv-tile", "64", "--json"});
  REQUIRE(flat.code == 0);
  CHECK(json::parse(flat.out).at("visited_max") == 4);
  CHECK(json::parse(flat.out).at("visited_sum_over_q_tiles") == 29);
  const auto causal = program({"simulate", "gna", "--extents", "64", "--window", "16", "--stride", "4",
                               "--causal", "true", "--q-tile", "16", "--kv-tile", "8", "--json"});
  REQUIRE(causal.code == 0);
  CHECK(json::parse(causal.out).at("visited_sum_over_q_tiles") == 14);
}

TEST_CASE("a sweep keeps strides that no smaller one equals, best last") {
  const auto r = program({"simulate", "gna", "--extents", "64,64", "--window", "24", "--q-tile", "8,8",
                          "--kv-tile", "8,8", "--sweep", "--json"});
  REQUIRE(r.code == 0);
  const json list = json::parse(r.out);
  REQUIRE(list.size() >= 2);
  CHECK(list.front().at("stride") == std::vector<int64_t>{1, 1});
  CHECK(list.back().at("S_sim").get<double>() == Approx(64.0 / 9));
  for (size_t i = 1; i < list.size(); ++i)
    CHECK(list[i].at("S_sim").get<double>() >= list[i - 1].at("S_sim").get<double>());
  for (const json& a : list)
    for (const json& b : list) {
      const auto x = a.at("stride").get<std::vector<int64_t>>(),
                 y = b.at("stride").get<std::vector<int64_t>>();
      if (x == y || x[0] > y[0] || x[1] > y[1]) continue;
      CHECK(a.at("S_sim").get<double>() < b.at("S_sim").get<double>());
    }
}

TEST_CASE("simulate refuses what is no neighbourhood with exit code 2") {
  const auto refused = [](std::vector<std::string> words, const char* text) {
    words.insert(words.begin(), {"simulate", "gna"});
    const auto r = program(words);
    CHECK(r.code == 2);
    CHECK_THAT(r.err, ContainsSubstring(text));
  };
  refused({"--extents", "8", "--window", "9"}, "window 9");
  refused({"--extents", "8", "--window", "4", "--stride", "5"}, "stride 5");
  refused({"--extents", "8,8", "--window", "4,4,4"}, "3 entries");
  refused({"--extents", "8,8,8,8", "--window", "4"}, "one to three axes");
  refused({"--extents", "8", "--window", "4", "--causal", "maybe"}, "maybe");
  refused({"--extents", "8", "--window", "4", "--stride", "2", "--sweep"}, "--sweep");
  refused({"--window", "4"}, "--extents");
  CHECK(program({"simulate", "nothing", "--extents", "8", "--window", "4"}).code == 2);
}

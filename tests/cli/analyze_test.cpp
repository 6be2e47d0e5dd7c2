// analyze as a user drives it on attention maps of files: results, refusals and their exit codes.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>

#include "tests/catch.hpp"
#include "tests/cli/drive.hpp"

using drive::program;
using nlohmann::json;

namespace {

/// One f32 tensor as a .safetensors file.
void write_map(const std::string& path, const std::string& shape, const std::vector<float>& values,
               const std::string& name = "attention") {
  const std::string header = R"({")" + name + R"(":{"dtype":"F32","shape":)" + shape +
                             R"(,"data_offsets":[0,)" + std::to_string(values.size() * 4) + "]}}";
  const uint64_t n = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &n, 8);
  bytes += header;
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * 4);
  drive::write(path, bytes);
}

/// Two layers of two heads over four tokens: even rows, then each token itself.
std::vector<float> even_then_diagonal() {
  std::vector<float> v;
  for (int l = 0; l < 2; ++l)
    for (int h = 0; h < 2; ++h)
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) v.push_back(l == 0 ? 0.25f : float(i == j));
  return v;
}

}  // namespace

TEST_CASE("analyze --maps: figures by layer and head, as text and JSON") {
  drive::TempFolder folder;
  const std::string path = (folder / "m.safetensors").string();
  write_map(path, "[2,1,2,4,4]", even_then_diagonal());
  const auto r = program({"analyze", "--maps", path, "-a", "entropy,pattern_scores", "--json"});
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  const json report = json::parse(r.out);
  CHECK(report.at("method") == "attention_maps");
  CHECK(report.at("params").at("layers") == 2);
  CHECK(report.at("problem").at("heads") == 2);
  CHECK(report.at("problem").at("length") == 4);
  const json& entropy = report.at("analyses").at(0);
  CHECK(entropy.at("series").at("head_mean_support").size() == 4);
  CHECK(entropy.at("series").at("head_mean_support").at(0).get<double>() == Approx(4));
  CHECK(entropy.at("series").at("head_mean_support").at(3).get<double>() == Approx(1));
  CHECK(report.at("analyses").at(1).at("series").at("head_diagonal") == json({0.25, 0.25, 1.0, 1.0}));

  const auto text = program({"analyze", "--maps", path, "-a", "entropy"});
  CHECK(text.code == 0);
  CHECK_THAT(text.out, ContainsSubstring("2 layers of maps"));
  CHECK_THAT(text.out, ContainsSubstring("head_mean_support"));
  // All analyses: those that need more than rows say so, the others are there.
  const auto all = program({"analyze", "--maps", path, "--problem", "grid=[2,2]"});
  CHECK(all.code == 0);
  CHECK_THAT(all.out, ContainsSubstring("Euclidean on the grid"));
  CHECK_THAT(all.out, ContainsSubstring("mass_recall: unsupported"));
  // Only what maps do not have: nothing was computed.
  CHECK(program({"analyze", "--maps", path, "-a", "mass_recall"}).code == 3);
}

TEST_CASE("analyze --maps: a grid after [CLS]; a method on the q, k and v of a file") {
  drive::TempFolder folder;
  const std::string path = (folder / "m.safetensors").string();
  write_map(path, "[5,5]", std::vector<float>(25, 0.2f));
  const std::vector<std::string> words{"analyze",   "--maps",     path,    "-a", "attention_distance",
                                       "--problem", "grid=[2,2]", "--json"};
  const auto refused = program(words);
  CHECK(refused.code == 2);
  CHECK_THAT(refused.err, ContainsSubstring("--leading-tokens 1"));
  auto said = words;
  said.insert(said.end(), {"--leading-tokens", "1"});
  const auto r = program(said);
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  // Even rows over a 2 x 2 grid: (0 + 1 + 1 + sqrt 2) / 4 from each of its tokens.
  const json report = json::parse(r.out);
  CHECK(report.at("params").at("leading_tokens") == 1);
  CHECK(report.at("analyses").at(0).at("scalars").at("mean_distance").get<double>() ==
        Approx((2 + std::sqrt(2.0)) / 4));
  CHECK(program({"analyze", "dense", "--leading-tokens", "1"}).code == 2);

  // One tensor a file here: a method that reads one, whose shape the file says.
  const std::string x = (folder / "x.safetensors").string();
  write_map(x, "[1,6,8]", std::vector<float>(48, 1.0f), "x");
  const auto given = program({"analyze", "moh", "--input", x, "--problem", "heads=2", "--param",
                              "shared_heads=1", "--param", "routed_heads=1", "--json"});
  CAPTURE(given.err, given.out);
  CHECK(json::parse(given.out).at("problem").at("length") == 6);
  CHECK(program({"analyze", "--maps", path, "--input", x}).code == 2);
  CHECK(program({"analyze", "dense", "--input", path}).code == 2);  // no q, k, v in it
}

TEST_CASE("analyze --maps refuses with the place, before it prints anything") {
  drive::TempFolder folder;
  const std::string path = (folder / "m.safetensors").string();
  const auto refused = [&](std::vector<std::string> words, const std::string& message) {
    words.insert(words.begin(), "analyze");
    const auto r = program(words);
    CAPTURE(words, r.err);
    CHECK(r.code == 2);
    CHECK(r.out.empty());
    CHECK_THAT(r.err, ContainsSubstring(message));
  };
  std::vector<float> v = even_then_diagonal();
  write_map(path, "[2,1,2,4,4]", v);
  refused({}, "a METHOD or --maps FILE is wanted");
  refused({"dense", "--maps", path}, "take no method");
  refused({"dense", "--tensor", "x"}, "--tensor: goes with --maps only");
  refused({"--maps", path, "-w", "w"}, "--weights: does not go with --maps");
  refused({"--maps", path, "-p", "a=1"}, "--param: does not go with --maps");
  refused({"--maps", path, "--row-tolerance", "2"}, "--row-tolerance");
  refused({"--maps", path, "--tensor", "atention"}, "did you mean 'attention'?");
  refused({"--maps", path, "--problem", "length=5"}, "problem.length: 5 is given, but the maps have 4");
  refused({"--maps", path, "--problem", "grid=[2,3]"}, "2x3 are 6 tokens");
  refused({"--maps", path, "--problem", "causal=true"},
          "'attention[0]', batch 0, head 0, query 0: the weight of key 1");
  refused({"--maps", path, "-a", "entorpy"}, "did you mean 'entropy'?");
  refused({"--maps", (folder / "none").string()}, "none");
  v[40] = -1;
  write_map(path, "[2,1,2,4,4]", v);
  refused({"--maps", path}, "'attention[1]', batch 0, head 0, query 2: the weight of key 0 is -1");
  v[40] = 0.5f;
  write_map(path, "[2,1,2,4,4]", v);
  refused({"--maps", path}, "query 2: the weights sum to 1.5, not to 1 within 0.0001");
  CHECK(program({"analyze", "--maps", path, "--row-tolerance", "0.5", "-a", "entropy"}).code == 0);
  write_map(path, "[64]", v);
  refused({"--maps", path}, "'attention' of shape [64] is no map");
}

TEST_CASE("analyze -o writes what report reads, and CSV of one value a row") {
  drive::TempFolder folder;
  const auto file = [&](const char* name) { return (folder / name).string(); };
  write_map(file("m.safetensors"), "[2,1,2,4,4]", even_then_diagonal());
  const auto r = program({"analyze", "--maps", file("m.safetensors"), "-a", "entropy,mass_recall", "-o",
                          file("r.json"), "-o", file("r.csv"), "-o", file("r.html"), "-o", file("r.md")});
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  CHECK_THAT(r.err, ContainsSubstring("wrote " + file("r.csv")));
  const std::string csv = drive::read(file("r.csv"));
  CHECK_THAT(csv, ContainsSubstring("case,method,device,analysis,quantity,layer,head,index,value\n"));
  CHECK_THAT(csv, ContainsSubstring("m,attention_maps,cpu,entropy,head_mean_normalised,0,1,1,1.0\n"));
  CHECK_THAT(csv, ContainsSubstring("m,attention_maps,cpu,entropy,head_mean_support,1,1,3,1.0\n"));
  const json run = json::parse(drive::read(file("r.json")));
  CHECK(run.at("cases").at(0).at("status") == "unverified");
  CHECK(run.at("cases").at(0).at("analyses").at(0).at("series").at("head_mean_nats").size() == 4);
  CHECK_THAT(run.at("cases").at(0).at("warnings").at(0).get<std::string>(), ContainsSubstring("mass_recall"));
  const auto again = program({"report", file("r.json"), "--format", "analyses"});
  CHECK(again.code == 0);
  CHECK(again.out == csv);
  const auto page = program({"report", file("r.json"), "-o", file("again.html")});
  CHECK(page.code == 0);
  CHECK(drive::read(file("again.html")) == drive::read(file("r.html")));
  CHECK_THAT(drive::read(file("r.md")), ContainsSubstring("Entropy of the attention rows"));

  // A method's analyses are written the same way, with its parameters.
  const auto method = program({"analyze", "sliding_window", "-p", "window=7", "--problem", "length=32", "-a",
                               "density", "-o", file("w.json")});
  CHECK(method.code == 0);
  const json w = json::parse(drive::read(file("w.json")));
  CHECK(w.at("cases").at(0).at("params").at("window") == 7);
  CHECK(w.at("cases").at(0).at("case").at("method") == "sliding_window");

  // Everything about files is refused before anything is computed.
  const auto refused = [&](const std::string& output, const std::string& message) {
    const auto no = program({"analyze", "--maps", file("m.safetensors"), "-a", "entropy", "-o", output});
    CAPTURE(output, no.err);
    CHECK(no.code == 2);
    CHECK(no.out.empty());
    CHECK_THAT(no.err, ContainsSubstring(message));
  };
  refused(file("x.wrong"), "tells no format");
  refused(file("none/x.csv"), "none");
  CHECK(program({"analyze", "dense", "-o", file("r.csv"), "-o", file("r.csv")}).code == 2);
}

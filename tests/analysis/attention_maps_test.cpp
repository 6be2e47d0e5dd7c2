// Attention maps of files: layouts, layers, what is refused and where, and memory that does not grow with the
// map.
#include "analysis/attention_maps.hpp"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "measure/environment.hpp"
#include "tests/analysis/fakes.hpp"
#include "tests/catch.hpp"

using namespace attnbench;
namespace fs = std::filesystem;

namespace {

struct Folder {
  fs::path path = fs::temp_directory_path() / ("attnbench_maps_" + std::to_string(::getpid()));
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
  std::string file(const std::string& name) const { return (path / name).string(); }
};

Context& host() {
  static Context ctx(cpu_backend(), 1);
  return ctx;
}

/// A softmax of seeded scores along the last axis.
Tensor maps(const Shape& shape, const std::string& name, bool causal = false) {
  Tensor t = host().allocate(DType::f32, shape);
  const int64_t n = shape[shape.rank() - 2], m = shape[shape.rank() - 1];
  for (int64_t r = 0; r < shape.numel() / m; ++r) {
    float* p = t.data<float>() + r * m;
    const int64_t seen = causal ? r % n + 1 : m;
    double sum = 0;
    for (int64_t j = 0; j < m; ++j) {
      const double e =
          j < seen ? std::exp(2 * random_normal(1, stream_of(name), static_cast<uint64_t>(r * m + j))) : 0;
      p[j] = static_cast<float>(e);
      sum += e;
    }
    for (int64_t j = 0; j < m; ++j) p[j] = static_cast<float>(p[j] / sum);
  }
  return t;
}

Tensor as(const Tensor& t, DType type) {
  Tensor out = host().allocate(type, t.shape());
  convert(t.raw(), t.dtype(), out.raw(), type, t.numel());
  return out;
}

AnalysisResult analyse(const char* id, AttentionMaps& instance, const Problem& problem,
                       const std::map<std::string, Value>& given = {}) {
  const Analysis& a = find_analysis(id);
  return a.compute(host(), instance, problem, resolve_params(id, a.info().params, given, problem));
}

void refused(const std::function<void()>& f, const std::vector<std::string>& words) {
  try {
    f();
    FAIL("nothing was refused");
  } catch (const DataError& e) {
    for (const std::string& w : words) CHECK_THAT(std::string(e.what()), ContainsSubstring(w));
  }
}

}  // namespace

TEST_CASE(
    "attention_maps: axes that are missing are 1, layers stack, in the order of the numbers in their names") {
  Folder folder;
  const std::string path = folder.file("a.safetensors");
  SECTION("one map") {
    write_safetensors(path, {{"map", maps({3, 5}, "x")}});
    AttentionMaps a(path, {});
    CHECK(a.layers() == 1);
    CHECK(a.shape().batch == 1);
    CHECK(a.shape().heads == 1);
    CHECK(a.shape().length == 3);
    CHECK(a.shape().kv_length == 5);
  }
  SECTION("a stack of layers is the same as a tensor a layer") {
    const Tensor all = maps({12, 2, 3, 5, 7}, "x");
    TensorMap apart;
    for (int64_t l = 0; l < 12; ++l) {
      Tensor t = host().allocate(DType::f32, {2, 3, 5, 7});
      std::copy_n(all.data<float>() + l * t.numel(), t.numel(), t.data<float>());
      apart["layers." + std::to_string(l) + ".attention"] = t;
    }
    write_safetensors(path, {{"all", all}});
    write_safetensors(folder.file("b.safetensors"), apart);
    AttentionMaps a(path, {}), b(folder.file("b.safetensors"), {});
    REQUIRE(a.layers() == 12);
    REQUIRE(b.layers() == 12);
    CHECK(a.layer_name(11) == "all[11]");
    CHECK(b.layer_name(2) == "layers.2.attention");
    CHECK(b.layer_name(10) == "layers.10.attention");
    std::vector<float> x, y;
    for (int64_t h = 0; h < 36; ++h)
      for (int64_t batch = 0; batch < 2; ++batch) {
        REQUIRE(a.rows(host(), batch, h, 1, 4, x));
        REQUIRE(b.rows(host(), batch, h, 1, 4, y));
        CHECK(x == y);
        CHECK(x[0] == all.data<float>()[((((h / 3) * 2 + batch) * 3 + h % 3) * 5 + 1) * 7]);
      }
  }
  SECTION("chosen tensors, in the order given; others may be anything") {
    Tensor ids = host().allocate(DType::i32, {4});
    write_safetensors(path, {{"late", maps({2, 4, 4}, "l")},
                             {"early", maps({2, 4, 4}, "e")},
                             {"embedding", maps({9, 30}, "x")},
                             {"ids", ids}});
    refused([&] { AttentionMaps(path, {}); }, {"'embedding' of shape [9, 30]", "--tensor"});
    AttentionMaps a(path, {.tensors = {"late", "early"}});
    CHECK(a.layer_name(0) == "late");
    CHECK(a.layer_name(1) == "early");
    refused([&] { AttentionMaps(path, {.tensors = {"laet"}}); }, {path, "'laet'", "did you mean 'late'"});
    refused([&] { AttentionMaps(path, {.tensors = {"ids"}}); }, {"'ids' is of i32"});
  }
}

TEST_CASE("attention_maps: what is no map is refused with its place") {
  Folder folder;
  const std::string path = folder.file("bad.safetensors");
  const auto written = [&](const TensorMap& t, const AttentionMapsOptions& options = {}) {
    write_safetensors(path, t);
    return AttentionMaps(path, options);
  };
  refused([&] { written({{"v", host().allocate(DType::f32, {4})}}); }, {path, "'v' of shape [4] is no map"});
  refused([&] { written({{"v", host().allocate(DType::f32, {1, 1, 1, 1, 4, 4})}}); }, {"is no map"});
  refused(
      [&] {
        written({{"v", host().allocate(DType::f32, {2, 0, 4})}});
      },
      {"'v' of shape [2, 0, 4] is empty"});
  refused([&] { written({{"v", host().allocate(DType::i32, {4, 4})}}); }, {"no tensor of floats"});
  refused(
      [&] {
        written({{"a", maps({2, 4, 4}, "a")}, {"b", maps({2, 4, 5}, "b")}});
      },
      {"'b' of shape [2, 4, 5] is no layer beside 'a' of shape [2, 4, 4]"});
  refused(
      [&] {
        written({{"a", maps({4, 4}, "a")}, {"tokens", host().allocate(DType::i32, {1, 5})}});
      },
      {"'tokens' of shape [1, 5]"});

  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto spoiled = [&](float value) {
    const Tensor t = maps({3, 2, 4, 6, 8}, "x");
    t.data<float>()[(((2 * 2 + 1) * 4 + 3) * 6 + 5) * 8 + 7] = value;  // l 2, b 1, h 3, i 5, j 7
    return TensorMap{{"m", t}};
  };
  const std::string place = "'m[2]', batch 1, head 3, query 5";
  refused([&] { written(spoiled(nan)).check(); }, {path, place, "weight of key 7 is nan"});
  refused([&] { written(spoiled(std::numeric_limits<float>::infinity())).check(); }, {place, "key 7 is inf"});
  refused([&] { written(spoiled(-0.125f)).check(); }, {place, "key 7 is -0.125, below 0"});
  refused([&] { written(spoiled(0.9f)).check(); }, {place, "the weights sum to 1.", "--row-tolerance"});
  CHECK_NOTHROW(written(spoiled(0.9f), {.row_tolerance = 1.0}).check());

  // A row of zeros sums to 0.
  Tensor zero = maps({4, 4}, "z");
  std::fill_n(zero.data<float>() + 8, 4, 0.0f);
  refused([&] { written({{"m", zero}}).check(); }, {"query 2: the weights sum to 0, not to 1 within 0.0001"});

  // Causal maps hold nothing above the diagonal, which ends at the last key.
  AttentionMaps causal = written({{"m", maps({2, 6, 6}, "c", true)}});
  Problem p = causal.shape();
  p.causal = true;
  causal.set_problem(p);
  CHECK_NOTHROW(causal.check());
  AttentionMaps all = written({{"m", maps({2, 6, 6}, "c")}});
  all.set_problem(p);
  refused([&] { all.check(); }, {"head 0, query 0", "weight of key 1", "later key"});
}

TEST_CASE("attention_maps: half precision has its own tolerance") {
  Folder folder;
  const Tensor t = maps({2, 64, 512}, "x");
  for (const DType type : {DType::f64, DType::f16, DType::bf16}) {
    const std::string path = folder.file(std::string(name(type)) + ".safetensors");
    write_safetensors(path, {{"m", as(t, type)}});
    AttentionMaps a(path, {});
    CHECK_NOTHROW(a.check());
    CHECK(a.shape().dtype == type);
    // The rounding is there, and f32's tolerance would not do for bf16.
    if (type != DType::bf16) continue;
    AttentionMaps strict(path, {.row_tolerance = 1e-6});
    refused([&] { strict.check(); }, {"within 1e-06"});
  }
  CHECK(row_tolerance(DType::f32) < row_tolerance(DType::f16));
  CHECK(row_tolerance(DType::f16) < row_tolerance(DType::bf16));
}

TEST_CASE("attention_maps: a grid and causality are set, extents are not") {
  Folder folder;
  const std::string path = folder.file("a.safetensors");
  write_safetensors(path, {{"m", maps({2, 12, 12}, "x")}});
  AttentionMaps a(path, {});
  Problem p = a.shape();
  p.heads = 3;
  CHECK_THROWS_AS(a.set_problem(p), UsageError);
  p = a.shape();
  p.length = 11;
  CHECK_THROWS_AS(a.set_problem(p), UsageError);
  p = a.shape();
  p.length = 0, p.kind = ProblemKind::image, p.grid = {3, 5};
  CHECK_THROWS_AS(a.set_problem(p), UsageError);
  p.grid = {3, 4};
  a.set_problem(p);
  CHECK(a.pairs()->grid == std::vector<int64_t>{3, 4});
  const AnalysisResult r = analyse("attention_distance", a, p);
  CHECK(r.notes.at("distance") == "Euclidean on the grid of tokens");
  CHECK(r.scalars.at("max_distance") <= std::sqrt(4.0 + 9.0));
}

TEST_CASE("attention_maps: distances with [CLS] are those of the maps without it, weighted anew") {
  Folder folder;
  const std::string whole = folder.file("whole.safetensors"), part = folder.file("part.safetensors");
  const Tensor all = maps({2, 14, 14}, "cls");
  Tensor inner = host().allocate(DType::f32, {2, 12, 12});
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t i = 0; i < 12; ++i) {
      const float* from = all.data<float>() + (h * 14 + i + 2) * 14 + 2;
      double sum = 0;
      for (int64_t j = 0; j < 12; ++j) sum += from[j];
      for (int64_t j = 0; j < 12; ++j)
        inner.data<float>()[(h * 12 + i) * 12 + j] = static_cast<float>(from[j] / sum);
    }
  write_safetensors(whole, {{"m", all}});
  write_safetensors(part, {{"m", inner}});
  Problem grid;
  grid.kind = ProblemKind::image, grid.grid = {3, 4}, grid.heads = 2, grid.batch = 1;
  AttentionMaps without(part, {}), with(whole, {.leading = 2}), unsaid(whole, {});
  without.set_problem(grid);
  with.set_problem(grid);
  try {
    unsaid.set_problem(grid);
    FAIL("14 tokens were taken for 12");
  } catch (const UsageError& e) {
    CHECK_THAT(std::string(e.what()), ContainsSubstring("--leading-tokens 2"));
  }
  AttentionMaps sequence(whole, {.leading = 2});
  CHECK_THROWS_AS(sequence.set_problem(sequence.shape()), UsageError);
  const AnalysisResult a = analyse("attention_distance", without, grid),
                       b = analyse("attention_distance", with, grid);
  for (const auto& [key, value] : a.scalars) {
    CAPTURE(key);
    CHECK(b.scalars.at(key) == Approx(value).epsilon(1e-5));
  }
  for (const auto& [key, values] : a.series) {
    REQUIRE(b.series.at(key).size() == values.size());
    for (size_t i = 0; i < values.size(); ++i) CHECK(b.series.at(key)[i] == Approx(values[i]).margin(1e-6));
  }
  CHECK_THAT(b.notes.at("leading"), ContainsSubstring("first 2 tokens"));
  // Everything else counts them: a row's entropy is over all 14 keys, and all 14 rows are there.
  CHECK(analyse("entropy", with, grid).scalars.at("mean_nats") > 0);
  CHECK(analyse("sinks", with, grid).series.at("head_first_mass").size() == 2);
}

TEST_CASE("attention_maps: keys above a threshold are what patterns consist of") {
  Folder folder;
  const std::string path = folder.file("a.safetensors");
  Tensor t = host().allocate(DType::f32, {4, 4});
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t j = 0; j < 4; ++j) t.data<float>()[i * 4 + j] = i == j ? 0.7f : 0.1f;
  write_safetensors(path, {{"m", t}});
  AttentionMaps every(path, {}), high(path, {.attended_above = 0.5});
  CHECK(analyse("density", every, every.shape()).scalars.at("density") == 1);
  CHECK(analyse("density", high, high.shape()).scalars.at("density") == 0.25);
  Intervals row;
  high.pairs()->row(0, 0, 3, row);
  CHECK(row == Intervals{{3, 4}});
  CHECK(analyse("receptive_field", high, high.shape()).scalars.at("fraction_mean") == 0.25);
}

TEST_CASE("attention_maps: the receptive field goes through the layers one after the other") {
  Folder folder;
  const std::string path = folder.file("a.safetensors");
  // Layer 0 looks one token back, layer 1 three.
  Tensor t = host().allocate(DType::f32, {2, 1, 2, 9, 9});
  std::fill_n(t.data<float>(), t.numel(), 0.0f);
  for (int64_t l = 0; l < 2; ++l)
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t i = 0; i < 9; ++i)
        t.data<float>()[((l * 2 + h) * 9 + i) * 9 + std::max<int64_t>(0, i - (l == 0 ? 1 : 3))] = 1;
  write_safetensors(path, {{"m", t}});
  AttentionMaps a(path, {});
  const AnalysisResult r = analyse("receptive_field", a, a.shape(), {{"residual", false}});
  CHECK(r.scalars.at("layers") == 2);
  CHECK(r.series.at("max_distance") == std::vector<double>{1, 4});
  // With residual connections: the token, those 1, 3 and 4 before it.
  CHECK(analyse("receptive_field", a, a.shape()).series.at("last_tokens") == std::vector<double>{2, 4});
}

TEST_CASE("attention_maps: every analysis of a dense method's rows gives the same from the file") {
  Folder folder;
  const std::string path = folder.file("dense.safetensors");
  Problem p;
  p.batch = 2, p.heads = 3, p.length = 40, p.head_dim = 16, p.causal = true;
  const Method& dense = find_method("dense");
  const auto instance = dense.make(host(), p, resolve_params("dense", dense.info().params, {}, p));
  fill_instance(host(), *instance, p);
  instance->prepare(host());
  instance->run(host());
  Tensor t = host().allocate(DType::f32, {2, 3, 40, 40});
  std::vector<float> block;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < 3; ++h) {
      REQUIRE(instance->rows(host(), b, h, 0, 40, block));
      std::copy(block.begin(), block.end(), t.data<float>() + (b * 3 + h) * 1600);
    }
  write_safetensors(path, {{"m", t}});
  AttentionMaps a(path, {});
  Problem q = a.shape();
  q.causal = true;
  a.set_problem(q);
  a.check();
  int same = 0;
  for (const char* id : {"attention_distance", "decay_length", "density", "effective_support", "entropy",
                         "head_similarity", "map_divergence", "map_spectrum", "pattern_scores",
                         "receptive_field", "selection_overlap", "sinks", "top_k_mass"}) {
    CAPTURE(id);
    const Analysis& one = find_analysis(id);
    const AnalysisResult want =
        one.compute(host(), *instance, p, resolve_params(id, one.info().params, {}, p));
    const AnalysisResult got = analyse(id, a, q);
    CHECK(got.scalars.size() == want.scalars.size());
    for (const auto& [key, value] : want.scalars) {
      CAPTURE(key);
      // Entropy comes from inside the fused pass there, whose exponentials differ in the last bits.
      CHECK(got.scalars.at(key) == Approx(value).epsilon(1e-5).margin(1e-6));
      ++same;
    }
    for (const auto& [key, values] : want.series) CHECK(got.series.at(key).size() == values.size());
  }
  CHECK(same > 60);
  // What needs more than rows says so.
  for (const Analysis* other : all_analyses()) {
    CAPTURE(other->info().id);
    try {
      const AnalysisResult r = analyse(other->info().id.c_str(), a, q);
      CHECK(r.analysis == other->info().id);
    } catch (const Unsupported& e) {
      CHECK_THAT(std::string(e.what()), ContainsSubstring(other->info().id));
    }
  }
}

TEST_CASE("attention_maps: tokens beside the maps are scored for induction") {
  Folder folder;
  const std::string path = folder.file("a.safetensors");
  Tensor t = host().allocate(DType::f32, {6, 6}), ids = host().allocate(DType::i32, {6});
  std::fill_n(t.data<float>(), 36, 0.0f);
  for (int32_t i = 0; i < 6; ++i) {
    ids.data<int32_t>()[i] = i % 3;
    t.data<float>()[i * 6 + (i < 3 ? 0 : i - 2)] = 1.0f;  // what followed the same token before
  }
  write_safetensors(path, {{"m", t}, {"tokens", ids}});
  AttentionMaps a(path, {});
  CHECK(analyse("pattern_scores", a, a.shape()).scalars.at("mean_induction") == 1);
}

TEST_CASE("attention_maps: memory is that of rows, not of maps") {
  Folder folder;
  const std::string path = folder.file("large.safetensors");
  // A file with a hole: 256 MiB of zeros that take no room on the disk.
  const int64_t n = 8192, bytes = n * n * 4;
  std::string header =
      R"({"m":{"dtype":"F32","shape":[8192,8192],"data_offsets":[0,)" + std::to_string(bytes) + "]}}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size();
  {
    std::ofstream f(path, std::ios::binary);
    f.write(reinterpret_cast<const char*>(&length), 8);
    f << header;
  }
  fs::resize_file(path, 8 + length + static_cast<uint64_t>(bytes));
  reset_rss_peak();
  const int64_t before = rss_peak();
  AttentionMaps a(path, {.row_tolerance = 1.0});
  a.check();
  const AnalysisResult r = analyse("entropy", a, a.shape());
  CHECK(r.scalars.at("rows_empty") == n);
  analyse("top_k_mass", a, a.shape());
  analyse("sinks", a, a.shape());
  analyse("density", a, a.shape());
  CHECK(rss_peak() - before < bytes / 8);
}

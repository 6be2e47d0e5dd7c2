// Radial attention: its masks by hand and by the original code's counts, the method against its reference,
// the card's degenerate cases.
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/methods/visible_sets.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem frames(int64_t f, int64_t s, int64_t text = 0, DType dtype = DType::f32) {
  return heads_problem(1, 1, 1, f * s + text, f * s + text, 8, false, dtype);
}

ParamMap geometry(int64_t f, int64_t s, ParamMap more = {}) {
  more["num_frames"] = f;
  more["tokens_per_frame"] = s;
  return more;
}

/// The kept block mask as the method's output `selected`.
std::vector<int64_t> row_sums(Trial& t) {
  t.run();
  const RefTensor s = t.output("selected");
  std::vector<int64_t> sums;
  for (int64_t r = 0; r < s.dim(0); ++r) {
    sums.push_back(0);
    for (int64_t c = 0; c < s.dim(1); ++c) sums.back() += static_cast<int64_t>(s[r * s.dim(1) + c]);
  }
  return sums;
}

int64_t total(const std::vector<int64_t>& v) {
  int64_t sum = 0;
  for (const int64_t x : v) sum += x;
  return sum;
}

}  // namespace

TEST_CASE("the token mask of Eq. 4, by hand") {
  // Frames of 4 tokens. Distance 2 and 3 (P 2): |kq - kk| + 1 <= 2; distance 4 (P 4): the same position.
  const ParamMap given = geometry(5, 4, {{"variant", "paper_token"}, {"sink_frames", 0}});
  const std::vector<int64_t> sets = visible_sets("radial_attention", frames(5, 4), given);
  // Token 1 of frame 0: frames 0 and 1 whole; 8 + {0, 1, 2}; 12 + {0, 1, 2}; 16 + {1}.
  CHECK(sets[1] == keys_word({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 17}));
  CHECK(sets[17] == keys_word({1, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19}));
  ParamMap sink = given;
  sink["sink_frames"] = 1;
  CHECK(visible_sets("radial_attention", frames(5, 4), sink)[17] ==
        keys_word({0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19}));
}

TEST_CASE("frames of one token: power-of-two distances both ways") {
  // Card, degenerate case 2.
  const std::vector<int64_t> sets = visible_sets(
      "radial_attention", frames(20, 1), geometry(20, 1, {{"variant", "paper_token"}, {"sink_frames", 0}}));
  CHECK(sets[0] == keys_word({0, 1, 2, 4, 8, 16}));
  CHECK(sets[9] == keys_word({9, 8, 10, 7, 11, 5, 13, 1, 17}));
}

TEST_CASE("text sees and is seen by everything") {
  const std::vector<int64_t> sets =
      visible_sets("radial_attention", frames(10, 2, 3),
                   geometry(10, 2, {{"variant", "paper_token"}, {"text_tokens", 3}}));
  CHECK(sets[22] == (int64_t{1} << 23) - 1);
  for (const int64_t set : sets) CHECK((set >> 20) == 7);
}

TEST_CASE("kept blocks equal the original code's counts") {
  std::ifstream file(ATTNBENCH_SOURCE_DIR "/tests/golden/oracles/radial_attention/counts.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  REQUIRE(golden["cases"].size() == 6);
  for (const auto& c : golden["cases"]) {
    const int64_t f = c["num_frames"], s = c["tokens_per_frame"];
    INFO("f " << f << ", s " << s);
    Trial t = make_trial("radial_attention", frames(f, s),
                         geometry(f, s,
                                  {{"block_size", c["block_size"].get<int64_t>()},
                                   {"decay_factor", c["decay_factor"].get<double>()},
                                   {"sink_frames", c["sink_frames"].get<int64_t>()}}));
    const std::vector<int64_t> sums = row_sums(t);
    CHECK(total(sums) == c["nnz"].get<int64_t>());
    // The original pads N to whole blocks, where step 6 keeps nothing more; here a ragged last block is text.
    CHECK(sums == c["row_sums"].get<std::vector<int64_t>>());
  }
}

TEST_CASE("kept blocks of the published configurations") {
  // Card, Cost: nnz with decay 1 and sink, text included; 4 D b^2 nnz operations where b divides N.
  struct Row {
    int64_t f, s, blocks, nnz;
    double decay;
    int64_t sink;
  };
  for (const Row& r : {Row{64, 3600, 1800, 621078, 1.0, 1}, Row{56, 1590, 696, 114282, 1.0, 1},
                       Row{41, 3600, 1154, 347853, 1.0, 1}, Row{30, 3840, 900, 222452, 0.95, 0},
                       Row{18, 3840, 540, 83728, 0.2, 1}}) {
    INFO("f " << r.f << ", s " << r.s);
    Context ctx(cpu_backend(), 1);
    Problem p = frames(r.f, r.s);
    p.head_dim = 1;
    const Method& m = find_method("radial_attention");
    const auto instance =
        m.make(ctx, p,
               resolve_params("radial_attention", m.info().params,
                              geometry(r.f, r.s, {{"decay_factor", r.decay}, {"sink_frames", r.sink}}), p));
    const PairSet pairs = *instance->pairs();
    int64_t nnz = 0, blocks = 0;
    Intervals row;
    for (int64_t i = 0; i < pairs.queries; i += 128) {
      ++blocks;
      pairs.row(0, 0, i, row);
      for (const Interval& v : row) nnz += (v.end - v.begin + 127) / 128;
    }
    CHECK(blocks == r.blocks);
    CHECK(nnz == r.nnz);
    if (r.f * r.s % 128 == 0) CHECK(instance->cost().cost.special == 128 * 128 * nnz);
  }
}

TEST_CASE("radial_attention agrees with its reference, and its formula with the ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  SECTION("blocks, sizes that divide nothing, text, grouped heads, batch 2") {
    Trial t =
        make_trial("radial_attention", heads_problem(2, 4, 2, 11 * 50 + 9, 11 * 50 + 9, 24, false, dtype),
                   geometry(11, 50,
                            {{"block_size", 16},
                             {"split_threshold", 40},
                             {"text_tokens", 9},
                             {"decay_factor", GENERATE(1.0, 0.3)},
                             {"sink_frames", GENERATE(0, 1)}}));
    check_trial(t, 3);
  }
  SECTION("rows that keep nothing") {
    Trial t = make_trial("radial_attention", frames(16, 120, 0, dtype), geometry(16, 120));
    check_trial(t, 3);
    CHECK(row_sums(t)[1] == 0);
    CHECK(t.output("o")[128 * 8] == 0);
  }
  SECTION("tokens") {
    Trial t =
        make_trial("radial_attention", heads_problem(2, 4, 2, 13 * 21 + 5, 13 * 21 + 5, 24, false, dtype),
                   geometry(13, 21,
                            {{"variant", "paper_token"},
                             {"block_size", GENERATE(1, 16, 1000)},
                             {"text_tokens", 5},
                             {"sink_frames", GENERATE(0, 1)}}));
    check_trial(t, 3);
  }
  SECTION("more frames than tokens of a frame") {
    Trial t = make_trial("radial_attention", frames(40, 3, 0, dtype),
                         geometry(40, 3, {{"variant", "paper_token"}, {"block_size", 8}}));
    check_trial(t, 3);
    Trial u = make_trial("radial_attention", frames(40, 3, 0, dtype),
                         geometry(40, 3, {{"block_size", 8}, {"split_threshold", 2}}));
    check_trial(u, 3);
  }
  SECTION("one token; text alone") {
    Trial t = make_trial("radial_attention", frames(1, 1, 0, dtype), geometry(1, 1));
    check_trial(t, 3);
    Trial u = make_trial("radial_attention", frames(1, 1, 30, dtype),
                         geometry(1, 1, {{"text_tokens", 30}, {"block_size", 8}}));
    check_trial(u, 3);
  }
}

TEST_CASE("radial_attention's degenerate cases") {
  const auto dense_like = [](int64_t f, int64_t s, const ParamMap& more) {
    Trial t = make_trial("radial_attention", frames(f, s), geometry(f, s, more));
    Trial dense = make_trial("dense", frames(f, s));
    t.run();
    dense.run();
    CHECK(t.instance->cost().cost.matmul == dense.instance->cost().cost.matmul);
    return compare(t.output("o"), dense.output("o")).relative_l2;
  };
  const double same = tolerance(DType::f32, 0);
  SECTION("1: two frames are dense") { CHECK(dense_like(2, 256, {}) < same); }
  SECTION("3: a wide window over whole blocks is dense") {
    CHECK(dense_like(3, 256, {{"decay_factor", 1e9}, {"sink_frames", 0}}) < same);
  }
  SECTION("3: but not where frames are not whole blocks") {
    Trial t = make_trial("radial_attention", frames(3, 250), geometry(3, 250, {{"decay_factor", 1e9}}));
    CHECK(total(row_sums(t)) < 36);
  }
  SECTION("4: with the sink, the blocks of frame 0 are kept by every row") {
    Trial t = make_trial("radial_attention", frames(3, 256), geometry(3, 256));
    t.run();
    const RefTensor kept = t.output("selected");
    for (int64_t r = 0; r < kept.dim(0); ++r) {
      CHECK(kept[r * kept.dim(1)] == 1);
      CHECK(kept[r * kept.dim(1) + 1] == 1);
    }
  }
  SECTION("5: without the sink the token mask is symmetric") {
    Trial t = make_trial("radial_attention", frames(9, 13),
                         geometry(9, 13, {{"variant", "paper_token"}, {"sink_frames", 0}}));
    t.run();
    const RefTensor kept = t.output("selected");
    const int64_t n = kept.dim(0);
    int64_t different = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) different += kept[i * n + j] != kept[j * n + i];
    CHECK(different == 0);
  }
  SECTION("6: no thresholds, no width, no splitting") {
    CHECK(dense_like(20, 32,
                     {{"column_density_min", 0},
                      {"block_keep_fraction", 0},
                      {"decay_factor", 1e9},
                      {"split_threshold", 1},
                      {"block_size", 8}}) < same);
  }
}

TEST_CASE("the paper's frame pairs have the closed count of pairs") {
  // Card, Cost: a frame pair with |kq - kk| <= m keeps s (2 m + 1) - m (m + 1) pairs; 2 (f - d) of distance
  // d.
  const int64_t f = 12, s = 24;
  int64_t pairs = f * s * s;
  for (int64_t d = 1; d < f; ++d) {
    int64_t p = 1;
    while (2 * p <= d) p *= 2;
    const int64_t m = s / p - 1;
    pairs += 2 * (f - d) * (s * (2 * m + 1) - m * (m + 1));
  }
  Trial t = make_trial("radial_attention", frames(f, s),
                       geometry(f, s, {{"variant", "paper_token"}, {"sink_frames", 0}}));
  CHECK(t.instance->cost().published_macs == 2 * 8 * pairs);
}

TEST_CASE("radial_attention rows, entropies and pairs describe the same weights") {
  Trial t =
      make_trial("radial_attention", heads_problem(2, 4, 2, 11 * 17, 11 * 17, 16, false),
                 geometry(11, 17, {{"block_size", 16}, {"variant", GENERATE("repo_block", "paper_token")}}));
  check_rows_and_stats(t);
}

TEST_CASE("a video's grid gives frames and tokens") {
  Problem p;
  p.kind = ProblemKind::video;
  p.grid = {5, 6, 7};
  p.heads = 2;
  p.head_dim = 8;
  Trial t = make_trial("radial_attention", p, {{"block_size", 16}});
  CHECK(t.params.integer("num_frames") == 5);
  CHECK(t.params.integer("tokens_per_frame") == 42);
  check_trial(t, 3);
  Trial text = make_trial("radial_attention", p, {{"block_size", 16}, {"text_tokens", 7}});
  CHECK(text.instance->outputs().at("o").shape() == Shape{1, 2, 217, 8});
  check_trial(text, 3);
  CHECK_THROWS_WITH(make_trial("radial_attention", p, {{"tokens_per_frame", 41}}), ContainsSubstring("grid"));
}

TEST_CASE("radial_attention says what it cannot do") {
  CHECK_THROWS_WITH(make_trial("radial_attention", frames(3, 5), geometry(3, 6)),
                    ContainsSubstring("make 18 tokens, and problem.length is 15"));
  Problem causal = frames(3, 5);
  causal.causal = true;
  CHECK_THROWS_AS(make_trial("radial_attention", causal, geometry(3, 5)), Unsupported);
  Problem longer = frames(3, 5);
  longer.kv_length = 16;
  CHECK_THROWS_AS(make_trial("radial_attention", longer, geometry(3, 5)), Unsupported);
  CHECK_THROWS_WITH(make_trial("radial_attention", frames(3, 5), geometry(3, 5, {{"decay_factor", 0}})),
                    ContainsSubstring("decay_factor"));
  // 200K tokens: 5 GB of bits.
  Problem huge = frames(50, 4000);
  Context ctx(cpu_backend(), 1);
  const Method& m = find_method("radial_attention");
  CHECK_THROWS_WITH(m.make(ctx, huge,
                           resolve_params("radial_attention", m.info().params,
                                          geometry(50, 4000, {{"variant", "paper_token"}}), huge)),
                    ContainsSubstring("MiB"));
}

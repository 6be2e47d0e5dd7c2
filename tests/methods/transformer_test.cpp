// The host model against its reference in all its forms; cache, hooks, names of weights, method attention.
#include "methods/transformer.hpp"

#include <cmath>

#include "kernels/elementwise/pointwise.hpp"
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem model_problem(int64_t batch, int64_t heads, int64_t kv_heads, int64_t n, int64_t channels,
                      bool causal, DType dtype = DType::f32) {
  Problem p;
  p.batch = batch;
  p.heads = heads;
  p.kv_heads = kv_heads;
  p.length = n;
  p.channels = channels;
  p.causal = causal;
  p.dtype = dtype;
  return p;
}

/// At 0.02 attention is nearly uniform and biases are 0: make every weight count.
void enlarge(Trial& t) {
  TensorMap larger;
  for (const auto& [key, w] : t.instance->weights()) {
    std::vector<double> values = to_reference(w).data;
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = values[i] * (values[i] == 1.0 ? 1.0 : 8.0) +
                  0.1 * std::sin(static_cast<double>(i * 7) + static_cast<double>(key.size()));
    larger[key] = host_tensor(*t.ctx, w.shape(), values, w.dtype());
  }
  rebind(t, {}, larger);
}

ParamMap small(const std::string& arch, ParamMap more = {}) {
  more["architecture"] = arch;
  more.emplace("num_layers", 2);
  more.emplace("vocab_size", 37);
  more.emplace("max_len", 40);
  more.emplace("mlp_hidden", 20);
  return more;
}

}  // namespace

TEST_CASE("transformer: every architecture and dtype against the reference, formula equal to the ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const std::string arch = GENERATE("gpt2", "llama", "bert", "lens");
  const bool causal = GENERATE(true, false);
  const int64_t kv = GENERATE(4, 2);
  Trial t = make_trial("transformer", model_problem(2, 4, kv, 11, 24, causal, dtype),
                       small(arch, {{"logits", kv == 4 ? "all" : "last"}}));
  enlarge(t);
  // The residual is rounded twice a layer, and each branch has about four roundings of its own.
  check_trial(t, 16, true);
}

TEST_CASE("transformer: shapes that divide nothing, one token, one head, no MLP") {
  for (const auto& [heads, n, channels] :
       std::vector<std::array<int64_t, 3>>{{1, 1, 6}, {3, 17, 21}, {5, 2, 10}}) {
    Trial t = make_trial("transformer", model_problem(3, heads, heads, n, channels, true),
                         small("lens", {{"use_mlp", false}, {"num_layers", 3}}));
    enlarge(t);
    check_trial(t, 16, true);
  }
  Trial t = make_trial("transformer", model_problem(1, 2, 1, 9, 12, true), small("llama", {{"tied", true}}));
  enlarge(t);
  check_trial(t, 16, true);
}

TEST_CASE("transformer: decoding through the cache gives what one pass gives") {
  const std::string arch = GENERATE("gpt2", "llama");
  const int decode = GENERATE(1, 4, 13);
  const std::string rows = GENERATE("all", "last");
  const Problem p = model_problem(2, 4, 2, 13, 24, true);
  Trial whole = make_trial("transformer", p, small(arch, {{"logits", rows}})),
        parts = make_trial("transformer", p, small(arch, {{"logits", rows}, {"decode", decode}}));
  enlarge(whole);
  enlarge(parts);
  check_trial(whole, 16, true);
  check_trial(parts, 16, true);
  CHECK(compare(parts.output("hidden"), whole.output("hidden")).relative_l2 < 4e-6);
}

TEST_CASE("transformer: methods of the toolbox as attention, the same or another in each layer") {
  const std::string attention =
      GENERATE("sliding_window window=3 sinks=1", "sliding_window window=2; dense scale=0.3", "naive");
  for (int decode : {0, 3}) {
    Trial t = make_trial("transformer", model_problem(2, 4, 2, 12, 24, true),
                         small("gpt2", {{"attention", attention}, {"decode", decode}}));
    enlarge(t);
    check_trial(t, 16, true);
  }
  const auto make = [&](const std::string& text) {
    return make_trial("transformer", model_problem(1, 4, 4, 12, 24, true),
                      small("gpt2", {{"attention", text}}));
  };
  CHECK_THROWS_WITH(make("dense; dense; dense"), ContainsSubstring("3 methods are named for 2 layers"));
  CHECK_THROWS_WITH(make("dens"), ContainsSubstring("did you mean 'dense'"));
  CHECK_THROWS_WITH(make("dense scale"), ContainsSubstring("key=value"));
  CHECK_THROWS_AS(make("hilo"), Error);  // given x, not q, k, v
}

TEST_CASE("transformer: analyses see the heads of all layers") {
  Trial t = make_trial("transformer", model_problem(2, 4, 2, 11, 24, true), small("gpt2"));
  enlarge(t);
  check_rows_and_stats(t);
  CHECK(t.instance->pairs()->heads == 8);
  Trial mixed = make_trial("transformer", model_problem(1, 4, 2, 11, 24, true),
                           small("gpt2", {{"attention", "sliding_window window=2; dense"}}));
  enlarge(mixed);
  check_rows_and_stats(mixed);
  Intervals seen;
  mixed.instance->pairs()->row(0, 1, 10, seen);
  CHECK(seen == Intervals{{8, 11}});
  mixed.instance->pairs()->row(0, 5, 10, seen);
  CHECK(seen == Intervals{{0, 11}});
}

TEST_CASE("transformer: a model without branches is its normalised embedding") {
  Trial t = make_trial("transformer", model_problem(1, 2, 2, 5, 4, true), small("gpt2"));
  enlarge(t);
  TensorMap zero;
  for (const auto& [key, w] : t.instance->weights())
    if (key.find("c_proj") != std::string::npos)
      zero[key] = host_tensor(*t.ctx, w.shape(), std::vector<double>(static_cast<size_t>(w.numel()), 0.0));
  rebind(t, {}, zero);
  t.run();
  const RefTensor e = to_reference(t.instance->weights().at("wte.weight")),
                  pos = to_reference(t.instance->weights().at("wpe.weight")),
                  gain = to_reference(t.instance->weights().at("ln_f.weight")),
                  offset = to_reference(t.instance->weights().at("ln_f.bias"));
  const RefTensor reference = t.reference().at("hidden"), hidden = t.output("hidden");
  for (int64_t i = 0; i < 5; ++i) {
    const int64_t id = t.instance->inputs().at("tokens").data<int32_t>()[i];
    double x[4], mean = 0, var = 0;
    for (int64_t c = 0; c < 4; ++c) mean += (x[c] = e[id * 4 + c] + pos[i * 4 + c]) / 4;
    for (double v : x) var += (v - mean) * (v - mean) / 4;
    for (int64_t c = 0; c < 4; ++c) {
      const double want = (x[c] - mean) / std::sqrt(var + 1e-5) * gain[c] + offset[c];
      CHECK(reference[i * 4 + c] == Approx(want).epsilon(1e-12));
      CHECK(hidden[i * 4 + c] == Approx(want).epsilon(1e-5));
    }
  }
}

TEST_CASE("transformer: the same weights under the names of gpt2 and TransformerLens are the same model") {
  const Problem p = model_problem(2, 3, 3, 7, 12, true);
  Trial a = make_trial("transformer", p, small("gpt2")), b = make_trial("transformer", p, small("lens"));
  enlarge(a);
  const auto from = [&](const std::string& name) {
    return to_reference(a.instance->weights().at(name)).data;
  };
  const int64_t c = 12, h = 3, d = 4, f = 20, v = 37;
  TensorMap w;
  const auto put = [&](const std::string& name, const std::vector<double>& values) {
    w[name] = host_tensor(*b.ctx, b.instance->weights().at(name).shape(), values);
  };
  put("embed.W_E", from("wte.weight"));
  put("pos_embed.W_pos", from("wpe.weight"));
  put("ln_final.w", from("ln_f.weight"));
  put("ln_final.b", from("ln_f.bias"));
  const std::vector<double> e = from("wte.weight");
  std::vector<double> u(e.size());
  for (int64_t i = 0; i < v; ++i)
    for (int64_t k = 0; k < c; ++k) u[static_cast<size_t>(k * v + i)] = e[static_cast<size_t>(i * c + k)];
  put("unembed.W_U", u);
  put("unembed.b_U", std::vector<double>(static_cast<size_t>(v), 0.0));
  for (int64_t l = 0; l < 2; ++l) {
    const std::string g = "h." + std::to_string(l) + ".", t = "blocks." + std::to_string(l) + ".";
    put(t + "ln1.w", from(g + "ln_1.weight"));
    put(t + "ln1.b", from(g + "ln_1.bias"));
    put(t + "ln2.w", from(g + "ln_2.weight"));
    put(t + "ln2.b", from(g + "ln_2.bias"));
    const std::vector<double> qkv = from(g + "attn.c_attn.weight"), bias = from(g + "attn.c_attn.bias");
    for (int64_t which = 0; which < 3; ++which) {
      const std::string name(1, "QKV"[which]);
      std::vector<double> m(static_cast<size_t>(h * c * d)), mb(static_cast<size_t>(h * d));
      for (int64_t i = 0; i < h; ++i)
        for (int64_t k = 0; k < d; ++k) {
          const int64_t column = which * c + i * d + k;
          mb[static_cast<size_t>(i * d + k)] = bias[static_cast<size_t>(column)];
          for (int64_t r = 0; r < c; ++r)
            m[static_cast<size_t>((i * c + r) * d + k)] = qkv[static_cast<size_t>(r * 3 * c + column)];
        }
      put(t + "attn.W_" + name, m);
      put(t + "attn.b_" + name, mb);
    }
    put(t + "attn.W_O", from(g + "attn.c_proj.weight"));
    put(t + "attn.b_O", from(g + "attn.c_proj.bias"));
    put(t + "mlp.W_in", from(g + "mlp.c_fc.weight"));
    put(t + "mlp.b_in", from(g + "mlp.c_fc.bias"));
    put(t + "mlp.W_out", from(g + "mlp.c_proj.weight"));
    put(t + "mlp.b_out", from(g + "mlp.c_proj.bias"));
  }
  CHECK(static_cast<int64_t>(from("h.0.mlp.c_fc.weight").size()) == c * f);
  rebind(b, {}, w);
  a.run();
  b.run();
  CHECK(compare(b.output("logits"), a.output("logits")).relative_l2 < 2e-6);
}

TEST_CASE("transformer: hooks read and replace heads, rows and residuals") {
  using Site = Transformer::Site;
  Context ctx(cpu_backend(), 2);
  TransformerConfig c = TransformerConfig::gpt2();
  c.layers = 2, c.heads = c.kv_heads = 3, c.head_dim = 4, c.channels = 12, c.hidden = 16, c.vocab = 19,
  c.max_len = 8;
  TensorMap w;
  for (TensorSpec s : transformer_specs(c, WeightNames::gpt2)) {
    if (s.optional) continue;
    s.init.b = 0.3;
    w[s.name] = make_tensor(ctx, s, 5, MemoryClass::weight);
  }
  const auto model_of = [&](const TensorMap& weights) {
    return Transformer(c, pack_transformer(ctx, c, WeightNames::gpt2, weights));
  };
  const Tensor tokens = ctx.allocate(DType::i32, {2, 6});
  for (int i = 0; i < 12; ++i) tokens.data<int32_t>()[i] = i * 5 % 19;
  const auto run = [&](const Transformer& m, const Transformer::Hook& hook) {
    const Tensor x = ctx.allocate(DType::f32, {2, 6, 12});
    m.embed(ctx, tokens, 0, x);
    Transformer::Pass pass;
    pass.hook = hook;
    m.forward(ctx, x, pass);
    return to_reference(x);
  };
  const Transformer model = model_of(w);
  std::vector<std::pair<Site, int64_t>> order;
  const RefTensor plain = run(model, [&](Context&, const Transformer::Tap& a) {
    order.emplace_back(a.site, a.layer);
    if (a.site == Site::z) CHECK(a.attention != nullptr);
  });
  const std::vector<Site> sites{
      Site::residual_pre, Site::q, Site::k, Site::v, Site::z, Site::attention_out, Site::mlp_out,
      Site::residual_post};
  REQUIRE(order.size() == 16);
  for (size_t i = 0; i < 16; ++i) CHECK(order[i] == std::pair(sites[i % 8], static_cast<int64_t>(i / 8)));
  CHECK(compare(run(model, {}), plain).relative_l2 < 1e-6);

  // Head 1 of layer 1 set to zero is its output projection without those rows.
  TensorMap cut = w;
  std::vector<double> out = to_reference(w.at("h.1.attn.c_proj.weight")).data;
  for (size_t i = 4 * 12; i < 8 * 12; ++i) out[i] = 0;
  cut["h.1.attn.c_proj.weight"] = host_tensor(ctx, {12, 12}, out);
  const RefTensor silent = run(model, [](Context& ctx, const Transformer::Tap& a) {
    if (a.site != Site::z || a.layer != 1) return;
    PointwiseArgs p;
    p.op = PointwiseArgs::Op::affine;
    p.a = p.y = a.value.select(1, 1);
    p.alpha = 0;
    pointwise(ctx, p);
  });
  CHECK(compare(silent, run(model_of(cut), [](Context&, const Transformer::Tap&) {})).relative_l2 < 1e-6);
  CHECK(compare(silent, plain).relative_l2 > 1e-2);

  // A replaced row changes later rows of its own sequence and nothing else.
  const RefTensor patched = run(model, [](Context&, const Transformer::Tap& a) {
    if (a.site == Site::residual_pre && a.layer == 0)
      for (int64_t i = 0; i < 12; ++i)
        a.value.select(0, 1).select(0, 3).data<float>()[i] = static_cast<float>(i);
  });
  for (int64_t row = 0; row < 12; ++row) {
    bool same = true;
    for (int64_t i = 0; i < 12; ++i) same = same && patched[row * 12 + i] == plain[row * 12 + i];
    CHECK(same == (row < 9));
  }
}

TEST_CASE("transformer counts GPT-2's parameters") {
  Context ctx(cpu_backend(), 1);
  const auto count = [&](Problem p, const ParamMap& given) {
    return find_method("transformer").make(ctx, p, params_of("transformer", p, given))->cost().parameters;
  };
  CHECK(count(model_problem(1, 12, 12, 1, 768, true), {}) == 124439808);
  CHECK(count(model_problem(1, 16, 16, 1, 1024, true), {{"num_layers", 24}}) == 354823168);
  // Llama-2-7B and BERT base without its pooler (109,482,240 - 590,592).
  CHECK(
      count(model_problem(1, 32, 32, 1, 4096, true),
            {{"architecture", "llama"}, {"num_layers", 32}, {"mlp_hidden", 11008}, {"vocab_size", 32000}}) ==
      6738415616);
  CHECK(count(model_problem(1, 12, 12, 1, 768, false),
              {{"architecture", "bert"}, {"vocab_size", 30522}, {"max_len", 512}}) == 108891648);
}

TEST_CASE("transformer says what it cannot do") {
  const Problem p = model_problem(1, 2, 2, 6, 8, true);
  const auto make = [](const Problem& q, const ParamMap& given) {
    return make_trial("transformer", q, small("gpt2", given));
  };
  CHECK_NOTHROW(make(p, {}));
  CHECK_THROWS_WITH(make(p, {{"max_len", 5}}), ContainsSubstring("max_len: 5 is below"));
  CHECK_THROWS_WITH(make(p, {{"decode", 7}}), ContainsSubstring("decode: 7 exceeds"));
  Problem open = p;
  open.causal = false;
  CHECK_THROWS_AS(make(open, {{"decode", 1}}), Unsupported);
  Problem odd = model_problem(1, 2, 2, 6, 6, true);
  CHECK_THROWS_WITH(make_trial("transformer", odd, small("llama")), ContainsSubstring("pairs of channels"));
}

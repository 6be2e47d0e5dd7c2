#include "methods/problem.hpp"

#include <cmath>

#include "methods/params.hpp"

namespace attnbench {

std::string_view name(ProblemKind k) {
  switch (k) {
    case ProblemKind::sequence:
      return "sequence";
    case ProblemKind::image:
      return "image";
    case ProblemKind::video:
      return "video";
    case ProblemKind::signal:
      return "signal";
  }
  return "?";
}

namespace {

const std::vector<std::string>& kind_words() {
  static const std::vector<std::string> words{"sequence", "image", "video", "signal"};
  return words;
}

[[noreturn]] void bad(const std::string& key, const std::string& what, const Value& got) {
  throw UsageError("problem." + key + ": " + what + ", not " + got.str());
}

int64_t positive(const std::string& key, const Value& v) {
  if (!v.is_int()) bad(key, "a whole number is wanted", v);
  if (v.as_int() < 1) bad(key, "at least 1 is wanted", v);
  return v.as_int();
}

bool boolean(const std::string& key, const Value& v) {
  if (!v.is_bool()) bad(key, "true or false is wanted", v);
  return v.as_bool();
}

std::vector<int64_t> extents(const std::string& key, const Value& v, size_t least, size_t most) {
  if (!v.is_list()) bad(key, "a list of whole numbers is wanted", v);
  std::vector<int64_t> out;
  for (const Value& e : v.as_list()) out.push_back(positive(key, e));
  if (out.size() < least || out.size() > most)
    bad(key,
        "a list of " + std::to_string(least) + (most > least ? " to " + std::to_string(most) : "") +
            " whole numbers is wanted",
        v);
  return out;
}

std::string joined(const std::vector<int64_t>& v) {
  std::string s;
  for (int64_t e : v) s += (s.empty() ? "" : "x") + std::to_string(e);
  return s;
}

Value list_of(const std::vector<int64_t>& v) {
  Value::List l;
  for (int64_t e : v) l.emplace_back(e);
  return l;
}

}  // namespace

ProblemKind parse_problem_kind(std::string_view word) {
  for (ProblemKind k : {ProblemKind::sequence, ProblemKind::image, ProblemKind::video, ProblemKind::signal})
    if (word == name(k)) return k;
  const std::string near = nearest_word(std::string(word), kind_words());
  throw UsageError(
      "unknown problem kind '" + std::string(word) + "'" +
      (near.empty() ? "; valid: sequence, image, video, signal" : "; did you mean '" + near + "'?"));
}

int64_t Problem::tokens() const {
  if (length) return length;
  if (grid.empty()) return 0;
  int64_t n = 1;
  for (int64_t g : grid)
    if (__builtin_mul_overflow(n, g, &n))
      throw UsageError("problem.grid: " + joined(grid) + " tokens overflow");
  return n;
}

std::string Problem::str() const {
  std::string s(name(kind));
  s += " batch " + std::to_string(batch);
  if (!grid.empty()) s += ", grid " + joined(grid);
  if (!size.empty()) s += ", size " + joined(size);
  if (length) s += ", length " + std::to_string(length);
  if (kv_length && kv_length != length) s += ", kv_length " + std::to_string(kv_length);
  if (channels) s += ", channels " + std::to_string(channels);
  if (heads) s += ", heads " + std::to_string(heads);
  if (kv_heads && kv_heads != heads) s += ", kv_heads " + std::to_string(kv_heads);
  if (head_dim) s += ", head_dim " + std::to_string(head_dim);
  if (samples) s += ", samples " + std::to_string(samples);
  if (sample_rate > 0) s += ", sample_rate " + Value(sample_rate).str();
  if (causal) s += ", causal";
  return s + ", " + std::string(name(dtype));
}

const std::vector<ProblemKey>& problem_keys() {
  static const std::vector<ProblemKey> keys{
      {"kind", "word", "all", "sequence, image, video or signal"},
      {"batch", "int", "all", "B, independent problems run together; default 1"},
      {"causal", "bool", "all", "query i sees keys up to its own position; default false"},
      {"dtype", "word", "all", "f32, bf16, f16 (f64 where a method has it); default f32"},
      {"seed", "int", "all", "of inputs and weights; default 0"},
      {"heads", "int", "sequence, image, video", "H, query heads"},
      {"kv_heads", "int", "sequence, image, video", "key and value heads (GQA); default heads"},
      {"length", "int", "sequence", "N, query tokens"},
      {"kv_length", "int", "sequence", "M, key tokens; default length"},
      {"head_dim", "int", "sequence, image, video", "D; with it the method is given q, k and v"},
      {"channels", "int", "all", "C; with it the method is given x"},
      {"grid", "int list", "image, video", "tokens by axis: [Hg, Wg] or [T, Hg, Wg]"},
      {"size", "int list", "image, video", "pixels: [H, W] or [T, H, W]"},
      {"samples", "int", "signal", "samples per channel"},
      {"sample_rate", "number", "signal", "Hz"},
      {"inputs", "map", "all",
       "a generator with its arguments, or file: PATH with layer and first_head; default: each input's own"},
  };
  return keys;
}

void set_problem_key(Problem& p, const std::string& key, const Value& v) {
  if (key == "kind") {
    if (!v.is_string()) bad(key, "a word is wanted", v);
    p.kind = parse_problem_kind(v.as_string());
  } else if (key == "batch") {
    p.batch = positive(key, v);
  } else if (key == "causal") {
    p.causal = boolean(key, v);
  } else if (key == "dtype") {
    if (!v.is_string()) bad(key, "a word is wanted", v);
    const DType t = parse_dtype(v.as_string());
    if (!is_float(t)) bad(key, "a floating type is wanted", v);
    p.dtype = t;
  } else if (key == "seed") {
    if (!v.is_int() || v.as_int() < 0) bad(key, "a whole number >= 0 is wanted", v);
    p.seed = static_cast<uint64_t>(v.as_int());
  } else if (key == "heads") {
    p.heads = positive(key, v);
  } else if (key == "kv_heads") {
    p.kv_heads = positive(key, v);
  } else if (key == "length") {
    p.length = positive(key, v);
  } else if (key == "kv_length") {
    p.kv_length = positive(key, v);
  } else if (key == "head_dim") {
    p.head_dim = positive(key, v);
  } else if (key == "channels") {
    p.channels = positive(key, v);
  } else if (key == "grid") {
    p.grid = extents(key, v, 1, 3);
  } else if (key == "size") {
    p.size = extents(key, v, 2, 3);
  } else if (key == "samples") {
    p.samples = positive(key, v);
  } else if (key == "sample_rate") {
    if (!v.is_number() || !(v.as_double() > 0) || std::isinf(v.as_double()))
      bad(key, "a rate in Hz above 0 is wanted", v);
    p.sample_rate = v.as_double();
  } else {
    std::vector<std::string> words;
    for (const ProblemKey& k : problem_keys()) words.emplace_back(k.key);
    const std::string near = nearest_word(key, words);
    throw UsageError("unknown problem key '" + key + "'" +
                     (near.empty() ? "" : "; did you mean '" + near + "'?"));
  }
}

std::map<std::string, Value> problem_values(const Problem& p) {
  std::map<std::string, Value> m;
  m["kind"] = std::string(name(p.kind));
  m["batch"] = p.batch;
  m["causal"] = p.causal;
  m["dtype"] = std::string(name(p.dtype));
  m["seed"] = static_cast<int64_t>(p.seed);
  const auto set = [&m](const char* key, int64_t v) {
    if (v) m[key] = v;
  };
  set("heads", p.heads);
  set("kv_heads", p.kv_heads);
  set("length", p.length);
  set("kv_length", p.kv_length);
  set("head_dim", p.head_dim);
  set("channels", p.channels);
  set("samples", p.samples);
  if (!p.grid.empty()) m["grid"] = list_of(p.grid);
  if (!p.size.empty()) m["size"] = list_of(p.size);
  if (p.sample_rate > 0) m["sample_rate"] = p.sample_rate;
  if (!p.inputs.generator.empty()) m["inputs.generator"] = p.inputs.generator;
  if (!p.inputs.file.empty()) m["inputs.file"] = p.inputs.file;
  for (const auto& [k, v] : p.inputs.arguments) m["inputs." + k] = v;
  return m;
}

void check_problem(const Problem& p) {
  const size_t axes = p.grid.size();
  if (p.kind == ProblemKind::image && axes && axes != 2)
    throw UsageError("problem.grid: an image has two axes [Hg, Wg], not " + joined(p.grid));
  if (p.kind == ProblemKind::video && axes && axes != 3)
    throw UsageError("problem.grid: a video has three axes [T, Hg, Wg], not " + joined(p.grid));
  if (p.kind == ProblemKind::sequence && axes)
    throw UsageError("problem.grid: a sequence has `length`, not a grid");
  if (p.kind == ProblemKind::image && p.size.size() == 3)
    throw UsageError("problem.size: an image has [H, W], not " + joined(p.size));
  if (p.kind != ProblemKind::sequence && p.length && axes)
    throw UsageError("problem.length: an image or video has a grid; its length is their product");
  if (p.kv_heads && p.heads && p.heads % p.kv_heads != 0)
    throw UsageError("problem.kv_heads: " + std::to_string(p.kv_heads) + " does not divide heads " +
                     std::to_string(p.heads));
  if (p.kind == ProblemKind::signal && !p.samples && !p.length && !p.grid.empty())
    throw UsageError("problem.samples: a signal needs its number of samples");
  p.tokens();  // refuses grids that overflow
}

}  // namespace attnbench

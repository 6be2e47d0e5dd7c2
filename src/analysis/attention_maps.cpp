#include "analysis/attention_maps.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cctype>
#include <cmath>

namespace attnbench {

namespace {

constexpr int64_t kFloats = int64_t{1} << 20;  // read at once: 4 MiB, or one row where that is longer

bool floating(DType t) { return t != DType::i32 && t != DType::u8; }

/// layers.2 before layers.10.
bool natural_less(const std::string& a, const std::string& b) {
  const auto digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (!digit(a[i]) || !digit(b[j])) {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i, ++j;
      continue;
    }
    while (i < a.size() && a[i] == '0') ++i;
    while (j < b.size() && b[j] == '0') ++j;
    size_t end_a = i, end_b = j;
    while (end_a < a.size() && digit(a[end_a])) ++end_a;
    while (end_b < b.size() && digit(b[end_b])) ++end_b;
    if (end_a - i != end_b - j) return end_a - i < end_b - j;
    const int order = a.compare(i, end_a - i, b, j, end_b - j);
    if (order != 0) return order < 0;
    i = end_a, j = end_b;
  }
  // Names that differ in leading zeros only: by their characters.
  return a.size() - i != b.size() - j ? a.size() - i < b.size() - j : a < b;
}

}  // namespace

double row_tolerance(DType t) {
  switch (t) {
    case DType::bf16:
      return 8e-3;
    case DType::f16:
      return 2e-3;
    default:
      return 1e-4;
  }
}

AttentionMaps::AttentionMaps(const std::string& path, const AttentionMapsOptions& options)
    : file_(std::make_shared<SafetensorsFile>(path)), options_(options) {
  const auto& entries = file_->entries();
  std::vector<size_t> chosen;
  if (options.tensors.empty()) {
    for (size_t e = 0; e < entries.size(); ++e)
      if (floating(entries[e].dtype)) chosen.push_back(e);
    std::sort(chosen.begin(), chosen.end(),
              [&](size_t a, size_t b) { return natural_less(entries[a].name, entries[b].name); });
    if (chosen.empty()) throw DataError(path + ": there is no tensor of floats");
  }
  for (const std::string& word : options.tensors) {
    const auto at =
        std::find_if(entries.begin(), entries.end(), [&](const auto& e) { return e.name == word; });
    if (at == entries.end()) {
      std::vector<std::string> names;
      for (const auto& e : entries) names.push_back(e.name);
      const std::string near = nearest_word(word, names);
      throw DataError(path + ": there is no tensor '" + word + "'" +
                      (near.empty() ? "" : "; did you mean '" + near + "'?"));
    }
    if (!floating(at->dtype))
      throw DataError(
          fmt::format("{}: tensor '{}' is of {}; maps are of floats", path, word, name(at->dtype)));
    chosen.push_back(static_cast<size_t>(at - entries.begin()));
  }
  // Where the file holds other tensors too, the words say how to leave them out.
  const std::string hint =
      options.tensors.empty() && chosen.size() > 1 ? "; --tensor names those that are maps" : "";
  const SafetensorsFile::Entry* first = nullptr;
  for (const size_t c : chosen) {
    const SafetensorsFile::Entry& e = entries[c];
    const std::string where = path + ": tensor '" + e.name + "'";
    const int rank = e.shape.rank();
    if (rank < 2 || rank > 5)
      throw DataError(where + " of shape " + e.shape.str() +
                      " is no map; [N, M], [H, N, M], [B, H, N, M] or [L, B, H, N, M] is wanted" + hint);
    if (e.shape.numel() == 0) throw DataError(where + " of shape " + e.shape.str() + " is empty" + hint);
    const auto axis = [&](int from_right) { return from_right < rank ? e.shape[rank - 1 - from_right] : 1; };
    const int64_t l = axis(4);
    if (!first) {
      first = &e;
      batch_ = axis(3), heads_ = axis(2), n_ = axis(1), m_ = axis(0);
      shape_.dtype = e.dtype;
    } else if (axis(3) != batch_ || axis(2) != heads_ || axis(1) != n_ || axis(0) != m_) {
      throw DataError(where + " of shape " + e.shape.str() + " is no layer beside '" + first->name +
                      "' of shape " + first->shape.str() + hint);
    }
    for (int64_t i = 0; i < l; ++i) layers_.push_back({c, i, l});
  }
  shape_.batch = batch_;
  shape_.heads = heads_;
  shape_.length = n_;
  if (m_ != n_) shape_.kv_length = m_;
  problem_ = shape_;
  read_tokens();
}

/// Token ids beside the maps, for induction scores: `tokens` [N] or [B, N].
void AttentionMaps::read_tokens() {
  const auto& entries = file_->entries();
  for (size_t e = 0; e < entries.size(); ++e) {
    if (entries[e].name != "tokens" || entries[e].dtype != DType::i32) continue;
    const Shape& s = entries[e].shape;
    if (!(s == Shape{batch_, n_}) && !(batch_ == 1 && s == Shape{n_}))
      throw DataError(fmt::format("{}: tensor 'tokens' of shape {} does not fit maps of {} x {} queries",
                                  file_->path(), s.str(), batch_, n_));
    tokens_.resize(static_cast<size_t>(batch_ * n_));
    file_->read(e, 0, batch_ * n_, tokens_.data());
    inputs_["tokens"] = Tensor::borrow(DeviceKind::cpu, DType::i32, {batch_, n_}, tokens_.data());
  }
}

std::string AttentionMaps::layer_name(int64_t l) const {
  const Layer& layer = layers_.at(static_cast<size_t>(l));
  return file_->entries()[layer.entry].name + (layer.of > 1 ? fmt::format("[{}]", layer.index) : "");
}

void AttentionMaps::set_problem(const Problem& problem) {
  check_problem(problem);
  const auto agree = [](const char* key, int64_t given, int64_t there) {
    if (given != there)
      throw UsageError(fmt::format("problem.{}: {} is given, but the maps have {}", key, given, there));
  };
  agree("batch", problem.batch, batch_);
  agree("heads", problem.heads, heads_);
  if (problem.grid.empty()) {
    agree("length", problem.length, n_);
    if (options_.leading > 0)
      throw UsageError("--leading-tokens: tokens stand before a grid, but the problem has none (grid=[H,W])");
    agree("kv_length", problem.kv_length_or_length(), m_);
  } else if (problem.tokens() + options_.leading != n_ || n_ != m_) {
    std::string grid;
    for (const int64_t g : problem.grid) grid += (grid.empty() ? "" : "x") + std::to_string(g);
    const int64_t more = n_ - problem.tokens() - options_.leading;
    throw UsageError(fmt::format(
        "problem.grid: {} are {} tokens{}, but the maps have {} queries and {} keys{}", grid,
        problem.tokens(), options_.leading > 0 ? fmt::format(" after {} leading ones", options_.leading) : "",
        n_, m_,
        n_ == m_ && more > 0
            ? fmt::format("; where others stand before the grid ([CLS], registers): --leading-tokens {}",
                          more + options_.leading)
            : ""));
  } else {
    agree("kv_length", problem.kv_length > 0 ? problem.kv_length : m_, m_);
  }
  problem_ = problem;
}

std::string AttentionMaps::place(int64_t b, int64_t h, int64_t i) const {
  return fmt::format("{}: tensor '{}', batch {}, head {}, query {}", file_->path(), layer_name(h / heads_), b,
                     h % heads_, i);
}

void AttentionMaps::read_rows(int64_t b, int64_t h, int64_t q_begin, int64_t q_end, float* out) const {
  const Layer& layer = layers_.at(static_cast<size_t>(h / heads_));
  const int64_t map = (layer.index * batch_ + b) * heads_ + h % heads_;
  file_->read(layer.entry, (map * n_ + q_begin) * m_, (q_end - q_begin) * m_, out);
}

bool AttentionMaps::rows(Context&, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
                         std::vector<float>& out) {
  out.resize(static_cast<size_t>((q_end - q_begin) * m_));
  read_rows(b, h, q_begin, q_end, out.data());
  return true;
}

void AttentionMaps::check() {
  const int64_t step = std::clamp<int64_t>(kFloats / m_, 1, n_);
  std::vector<float> block(static_cast<size_t>(step * m_));
  for (int64_t h = 0; h < layers() * heads_; ++h) {
    const DType type = file_->entries()[layers_[static_cast<size_t>(h / heads_)].entry].dtype;
    const double tolerance =
        std::isnan(options_.row_tolerance) ? row_tolerance(type) : options_.row_tolerance;
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t q = 0; q < n_; q += step) {
        const int64_t end = std::min(q + step, n_);
        read_rows(b, h, q, end, block.data());
        for (int64_t i = q; i < end; ++i) {
          const float* p = block.data() + (i - q) * m_;
          // The last query stands at the last key.
          const int64_t allowed = problem_.causal ? std::clamp<int64_t>(i + 1 + m_ - n_, 0, m_) : m_;
          double sum = 0;
          for (int64_t j = 0; j < m_; ++j) {
            sum += static_cast<double>(p[j]);
            if (p[j] >= 0 && std::isfinite(p[j]) && (j < allowed || p[j] == 0)) continue;
            throw DataError(fmt::format("{}: the weight of key {} is {}{}", place(b, h, i), j, p[j],
                                        !std::isfinite(p[j]) ? ""
                                        : p[j] < 0 ? ", below 0: maps are probabilities, after the softmax"
                                                   : ", though a later key has none in causal attention"));
          }
          if (std::fabs(sum - 1) > tolerance)
            throw DataError(
                fmt::format("{}: the weights sum to {:.6g}, not to 1 within {:g}; --row-tolerance says how "
                            "far they may be off",
                            place(b, h, i), sum, tolerance));
        }
      }
  }
}

std::optional<PairSet> AttentionMaps::pairs() const {
  PairSet set;
  set.batch = batch_;
  set.heads = layers() * heads_;
  set.layers = layers();
  set.queries = n_;
  set.tokens = m_;
  set.same_for_all_batches = batch_ == 1;
  set.grid = problem_.grid;
  set.leading = options_.leading;
  // Queries are asked for in order: a block of rows is read at once.
  struct Block {
    std::vector<float> rows;
    int64_t b = -1, h = -1, begin = 0, end = 0;
  };
  set.row = [this, block = std::make_shared<Block>()](int64_t b, int64_t h, int64_t i, Intervals& out) {
    if (block->b != b || block->h != h || i < block->begin || i >= block->end) {
      block->b = b, block->h = h, block->begin = i;
      block->end = std::min(n_, i + std::max<int64_t>(1, kFloats / 16 / m_));
      block->rows.resize(static_cast<size_t>((block->end - i) * m_));
      read_rows(b, h, i, block->end, block->rows.data());
    }
    const float* p = block->rows.data() + (i - block->begin) * m_;
    out.clear();
    for (int64_t j = 0; j < m_; ++j) {
      if (!(static_cast<double>(p[j]) > options_.attended_above)) continue;
      if (!out.empty() && out.back().end == j)
        ++out.back().end;
      else
        out.push_back({j, j + 1});
    }
  };
  return set;
}

}  // namespace attnbench

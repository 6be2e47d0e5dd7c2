#include "measure/case_id.hpp"

namespace attnbench {

uint64_t fnv1a64(std::string_view text) {
  // Offset basis and prime of the 64-bit FNV-1a definition (Fowler, Noll, Vo).
  uint64_t h = 14695981039346656037ull;
  for (const char c : text) {
    h ^= static_cast<unsigned char>(c);
    h *= 1099511628211ull;
  }
  return h;
}

std::string hash_text(std::string_view text) {
  static const char digits[] = "0123456789abcdef";
  const uint64_t h = fnv1a64(text);
  std::string s(16, '0');
  for (int i = 0; i < 16; ++i) s[static_cast<size_t>(i)] = digits[(h >> (60 - 4 * i)) & 15];
  return s;
}

std::string case_id_text(const Case& c, const std::map<std::string, Value>& resolved_params,
                         const MeasureConfig& m) {
  std::string t = "attnbench-case-1\n";
  const auto line = [&t](const std::string& key, const Value& v) { t += key + "=" + v.str() + "\n"; };
  line("method", c.method);
  for (const auto& [k, v] : resolved_params) line("param." + k, v);
  for (const auto& [k, v] : problem_values(c.problem)) line("problem." + k, v);
  line("device", c.device);
  line("measure.cache", m.cache_on(c.device));
  line("measure.max_samples", m.max_samples);
  line("measure.max_time_s", m.max_time_s);
  line("measure.min_sample_s", m.min_sample_s);
  line("measure.min_samples", m.min_samples);
  line("measure.precision", m.precision);
  line("measure.threads", m.threads);
  return t;
}

std::string case_id(const Case& c, const std::map<std::string, Value>& resolved_params,
                    const MeasureConfig& measure) {
  return hash_text(case_id_text(c, resolved_params, measure));
}

}  // namespace attnbench

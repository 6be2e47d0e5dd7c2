// The identity of a case across runs and machines: a hash of what was asked for, never of what was observed.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "suite/suite.hpp"

namespace attnbench {

/// FNV-1a, 64 bits, as 16 hexadecimal digits. Not cryptographic: ids name cases, they protect nothing.
uint64_t fnv1a64(std::string_view text);
std::string hash_text(std::string_view text);

/// The text that is hashed, one `key=value` a line, sorted within its section:
///     attnbench-case-1
///     method=hilo
///     param.alpha=0.9            resolved parameters, every one
///     problem.batch=64           the keys of problem_values(): kind, batch, causal, dtype, seed, extents,
///     inputs device=cpu                 the kind, not the model: the machine has its own id
///     measure.cache=hot          precision, times, sample counts, cache state, threads
/// Left out on purpose: names, axes, place in the file, whether raw samples are kept, anything read at run
/// time. A change of this format changes every id: raise the number in its first line and say so in
/// CHANGELOG.
std::string case_id_text(const Case& c, const std::map<std::string, Value>& resolved_params,
                         const MeasureConfig& measure);
std::string case_id(const Case& c, const std::map<std::string, Value>& resolved_params,
                    const MeasureConfig& measure);

}  // namespace attnbench

#include "cli/share.hpp"

#include <cmath>
#include <cstdlib>

#include "kernels/core/error.hpp"

namespace attnbench {

double parse_share(const std::string& option, const std::string& text) {
  char* end = nullptr;
  double v = std::strtod(text.c_str(), &end);
  const bool percent = *end == '%';
  if (percent) ++end, v /= 100;
  if (text.empty() || end == text.c_str() || *end || !(v >= 0 && v <= 10))
    throw UsageError(option + ": '" + text + "' is no share; 3% or 0.03 is wanted");
  return v;
}

}  // namespace attnbench

#include "methods/value.hpp"

#include <charconv>
#include <cmath>

namespace attnbench {

std::string Value::str() const {
  if (is_null()) return "null";
  if (is_bool()) return as_bool() ? "true" : "false";
  if (is_int()) return std::to_string(as_int());
  if (is_double()) {
    const double d = as_double();
    if (std::isnan(d)) return ".nan";
    if (std::isinf(d)) return d < 0 ? "-.inf" : ".inf";
    char buf[40];
    const auto end = std::to_chars(buf, buf + sizeof buf, d).ptr;
    std::string s(buf, end);
    // Keep it a number with a fraction, so that it reads back as a double.
    if (s.find_first_of(".eE") == std::string::npos) s += ".0";
    return s;
  }
  if (is_string()) return as_string();
  std::string s = "[";
  bool first = true;
  for (const Value& v : as_list()) {
    if (!first) s += ", ";
    s += v.str();
    first = false;
  }
  return s + "]";
}

}  // namespace attnbench

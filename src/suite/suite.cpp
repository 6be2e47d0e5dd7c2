#include "suite/suite.hpp"

namespace attnbench {

std::string Place::str() const {
  if (line == 0) return file;
  return file + ":" + std::to_string(line) + ":" + std::to_string(column);
}

}  // namespace attnbench

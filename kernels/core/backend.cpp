#include "kernels/core/backend.hpp"

namespace attnbench {

void Backend::not_implemented(std::string_view op) const {
  throw Unsupported("the operator '" + std::string(op) + "' has no implementation on the " +
                    std::string(name(device())) + " backend");
}

}  // namespace attnbench

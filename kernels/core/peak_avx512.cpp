#define ATTNBENCH_ISA isa_avx512
#include "kernels/core/peak_body.hpp"

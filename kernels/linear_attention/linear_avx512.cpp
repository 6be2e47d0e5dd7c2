#define ATTNBENCH_ISA isa_avx512
#include "kernels/linear_attention/linear_body.hpp"

#define ATTNBENCH_ISA isa_avx2
#include "kernels/linear_attention/linear_body.hpp"

#define ATTNBENCH_ISA isa_avx512
#include "kernels/norm/norm_body.hpp"

#define ATTNBENCH_ISA isa_avx2
#include "kernels/local_linear/local_linear_body.hpp"

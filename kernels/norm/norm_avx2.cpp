#define ATTNBENCH_ISA isa_avx2
#include "kernels/norm/norm_body.hpp"

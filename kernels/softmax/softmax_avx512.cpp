#define ATTNBENCH_ISA isa_avx512
#include "kernels/softmax/softmax_body.hpp"

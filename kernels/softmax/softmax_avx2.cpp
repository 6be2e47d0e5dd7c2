#define ATTNBENCH_ISA isa_avx2
#include "kernels/softmax/softmax_body.hpp"

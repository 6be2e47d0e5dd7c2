#define ATTNBENCH_ISA isa_avx512
#include "kernels/conv/conv_body.hpp"

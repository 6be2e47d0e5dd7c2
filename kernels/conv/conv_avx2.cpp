#define ATTNBENCH_ISA isa_avx2
#include "kernels/conv/conv_body.hpp"

#define ATTNBENCH_ISA isa_avx512
#include "kernels/elementwise/pointwise_body.hpp"

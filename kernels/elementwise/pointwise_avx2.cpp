#define ATTNBENCH_ISA isa_avx2
#include "kernels/elementwise/pointwise_body.hpp"

#define ATTNBENCH_ISA isa_avx512
#include "kernels/layout/layout_body.hpp"

#define ATTNBENCH_ISA isa_avx2
#include "kernels/layout/layout_body.hpp"

#define ATTNBENCH_ISA isa_avx2
#include "kernels/core/peak_body.hpp"

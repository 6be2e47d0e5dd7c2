#define ATTNBENCH_ISA isa_avx2
#include "kernels/gemm/gemm_body.hpp"

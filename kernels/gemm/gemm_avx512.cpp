#define ATTNBENCH_ISA isa_avx512
#include "kernels/gemm/gemm_body.hpp"

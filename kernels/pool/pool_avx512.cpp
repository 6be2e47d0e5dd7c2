#define ATTNBENCH_ISA isa_avx512
#include "kernels/pool/pool_body.hpp"

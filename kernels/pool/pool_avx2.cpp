#define ATTNBENCH_ISA isa_avx2
#include "kernels/pool/pool_body.hpp"

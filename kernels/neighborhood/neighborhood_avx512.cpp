#define ATTNBENCH_ISA isa_avx512
#include "kernels/neighborhood/neighborhood_body.hpp"

#define ATTNBENCH_ISA isa_avx2
#include "kernels/neighborhood/neighborhood_body.hpp"

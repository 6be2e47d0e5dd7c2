#define ATTNBENCH_ISA isa_avx512
#include "kernels/scan/scan_body.hpp"

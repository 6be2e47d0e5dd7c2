#define ATTNBENCH_ISA isa_avx2
#include "kernels/scan/scan_body.hpp"

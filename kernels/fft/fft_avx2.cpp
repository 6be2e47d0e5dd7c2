#define ATTNBENCH_ISA isa_avx2
#include "kernels/fft/fft_body.hpp"

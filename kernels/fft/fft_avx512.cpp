#define ATTNBENCH_ISA isa_avx512
#include "kernels/fft/fft_body.hpp"

#define ATTNBENCH_ISA isa_avx512
#include "kernels/fft/signal_body.hpp"

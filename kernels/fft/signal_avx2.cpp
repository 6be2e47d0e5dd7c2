#define ATTNBENCH_ISA isa_avx2
#include "kernels/fft/signal_body.hpp"

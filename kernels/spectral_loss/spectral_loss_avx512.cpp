#define ATTNBENCH_ISA isa_avx512
#include "kernels/spectral_loss/spectral_loss_body.hpp"

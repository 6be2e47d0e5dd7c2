#define ATTNBENCH_ISA isa_avx2
#include "kernels/spectral_loss/spectral_loss_body.hpp"

# The CUDA backend as a module opened at run time. sm_80 code runs on every card since Ampere; sm_90a code is Hopper's.
# CMake 3.25 does not know the C++20 flag of every CUDA compiler.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
find_package(CUDAToolkit 12.8 REQUIRED)
file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS kernels/*.cu)
add_library(attnbench_cuda MODULE ${cuda_sources})
set_target_properties(attnbench_cuda PROPERTIES PREFIX lib CUDA_ARCHITECTURES "80-real;90a-real"
                      CXX_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden)
target_include_directories(attnbench_cuda PRIVATE ${CMAKE_SOURCE_DIR})
target_compile_options(attnbench_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>
  # Machine code of real architectures is stored as it is unless asked for otherwise; the driver unpacks it.
  $<$<COMPILE_LANGUAGE:CUDA>:-Xfatbin=-compress-all>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wno-unused-parameter>)
target_link_libraries(attnbench_cuda PRIVATE attnbench_kernels CUDA::cudart_static CUDA::cublasLt CUDA::cufft)
install(TARGETS attnbench_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})

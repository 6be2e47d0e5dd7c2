# Everything comes from the system's packages; nothing is vendored or fetched. Each optional piece becomes an
# interface target that exists in any case, so that users of it need no conditions.
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(fmt REQUIRED)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(Eigen3 REQUIRED NO_MODULE)
find_package(PkgConfig REQUIRED)

# The history of runs. Tables are STRICT: 3.37.
pkg_check_modules(SQLITE REQUIRED IMPORTED_TARGET sqlite3>=3.37)

find_package(yaml-cpp REQUIRED)
add_library(attnbench_yaml INTERFACE)
if(TARGET yaml-cpp::yaml-cpp)
  target_link_libraries(attnbench_yaml INTERFACE yaml-cpp::yaml-cpp)
else()
  target_link_libraries(attnbench_yaml INTERFACE yaml-cpp)
endif()

# OpenBLAS built on OpenMP shares our thread pool; the pthread build would spin a second pool on the same cores.
find_library(OPENBLAS_LIBRARY NAMES openblas
             HINTS /usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/openblas-openmp NO_DEFAULT_PATH)
if(NOT OPENBLAS_LIBRARY)
  find_library(OPENBLAS_LIBRARY NAMES openblas REQUIRED)
endif()
find_path(CBLAS_INCLUDE cblas.h PATH_SUFFIXES ${CMAKE_LIBRARY_ARCHITECTURE} openblas REQUIRED)
add_library(attnbench_blas INTERFACE)
get_filename_component(openblas_dir ${OPENBLAS_LIBRARY} DIRECTORY)
target_link_libraries(attnbench_blas INTERFACE ${OPENBLAS_LIBRARY})
target_include_directories(attnbench_blas INTERFACE ${CBLAS_INCLUDE})
list(APPEND CMAKE_BUILD_RPATH ${openblas_dir})
list(APPEND CMAKE_INSTALL_RPATH ${openblas_dir})

pkg_check_modules(FFTWF REQUIRED IMPORTED_TARGET fftw3f)
find_library(FFTWF_OMP fftw3f_omp REQUIRED)
add_library(attnbench_fftw INTERFACE)
target_link_libraries(attnbench_fftw INTERFACE ${FFTWF_OMP} PkgConfig::FFTWF)

# libxsmm generates the small-tile products of the CPU kernels on x86-64; without it an Eigen path is used.
add_library(attnbench_xsmm INTERFACE)
find_library(XSMM_LIBRARY NAMES xsmm libxsmm.a)
find_path(XSMM_INCLUDE libxsmm.h PATH_SUFFIXES libxsmm)
if(XSMM_LIBRARY AND XSMM_INCLUDE)
  target_link_libraries(attnbench_xsmm INTERFACE ${XSMM_LIBRARY} ${CMAKE_DL_LIBS})
  target_include_directories(attnbench_xsmm INTERFACE ${XSMM_INCLUDE})
  target_compile_definitions(attnbench_xsmm INTERFACE ATTNBENCH_HAVE_XSMM=1)
endif()

add_library(attnbench_catch INTERFACE)
if(BUILD_TESTING OR NOT DEFINED BUILD_TESTING)
  find_package(Catch2 REQUIRED)
  if(TARGET Catch2::Catch2WithMain)
    target_link_libraries(attnbench_catch INTERFACE Catch2::Catch2WithMain)
  else()
    target_link_libraries(attnbench_catch INTERFACE Catch2::Catch2)
  endif()
endif()

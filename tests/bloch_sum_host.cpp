// The GPU kernels of the Bloch sum as plain C++: blocks and threads one after the other.
#define __device__
#define __global__
#define __launch_bounds__(n)

struct Index {
  unsigned x, y, z;
};
static Index blockIdx, threadIdx, gridDim, blockDim;

#include "kernel.cu"

template <typename F, typename... Args>
static void launch(F kernel, const unsigned* grid, Args... args) {
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {kThreads, 1, 1};
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(args...);
}

#define NEXTHAM_HOST(Name, T)                                                                                       \
  extern "C" void host_forward_##Name(const unsigned* grid, const T* blocks, const Complex<T>* coefficient,         \
                                      const long long* edges, const long long* pairs, long long n_phases,           \
                                      long long size, int spins, Complex<T>* dense) {                               \
    launch(forward_##Name, grid, blocks, coefficient, edges, pairs, n_phases, size, spins, dense);                  \
  }                                                                                                                 \
  extern "C" void host_backward_##Name(const unsigned* grid, const Complex<T>* grad, const Complex<T>* coefficient, \
                                       const long long* edges, const long long* pairs, long long n_phases,          \
                                       long long size, int spins, T* grad_blocks) {                                 \
    launch(backward_##Name, grid, grad, coefficient, edges, pairs, n_phases, size, spins, grad_blocks);             \
  }

NEXTHAM_HOST(float_1, float)
NEXTHAM_HOST(float_2, float)
NEXTHAM_HOST(double_1, double)
NEXTHAM_HOST(double_2, double)

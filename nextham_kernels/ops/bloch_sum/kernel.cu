// Bloch sum and its adjoint on the GPU: the kernels of nextham_kernels/ops/bloch_sum, compiled at run time by CuPy.
//
// Forward: a block of threads takes one pair of atoms and kGroup phases; a thread one number of the pair's blocks,
// which it reads from each edge once for all of these phases, and sums in registers in the order of the edges. Numbers
// of one row of H(k) are on neighbouring threads. Backward: a pair of atoms and kGroup of its edges at a time; a thread
// reads one number of the gradient for each phase once for all of these edges. No atomics: the same input gives the
// same bits.
//
// Per number of an edge and phase: 4 (complex blocks: 8) flops. Bytes forward: the blocks once for kGroup phases, H(k)
// once; so at 64 k-points and 60 edges of a pair in double precision 16 bytes and 240 flops for a number of H(k).
//
// The file is plain C++ where it is not compiled for a GPU: tests/bloch_sum_host.cpp runs it, one thread after another.

constexpr int kGroup = 8;
constexpr int kThreads = 256;

template <typename T>
struct alignas(2 * sizeof(T)) Complex {
  T re, im;
};

// A pair of atoms: its edges, and where its block lies in H(k).
struct Pair {
  long long first, last, row, column;
  int a, b;
  __device__ Pair(const long long* edges, const long long* pairs, long long pair)
      : first(pairs[pair]), last(pairs[pair + 1]) {
    const long long* e = edges + 6 * first;
    row = e[2], column = e[3], a = static_cast<int>(e[4]), b = static_cast<int>(e[5]);
  }
  // Where the i-th number of a block [s, s', a, b] lies in a matrix of `size` rows.
  __device__ long long place(int i, int spins, long long size) const {
    const int spin = i / (a * b), orbital = i % (a * b);
    return (row + orbital / b * spins + spin / spins) * size + column + orbital % b * spins + spin % spins;
  }
};

template <typename T, int Parts>
__device__ void forward(const T* blocks, const Complex<T>* coefficient, const long long* edges, const long long* pairs,
                        long long n_phases, long long size, int spins, Complex<T>* dense) {
  const long long n_groups = (n_phases + kGroup - 1) / kGroup;
  const Pair pair(edges, pairs, blockIdx.x / n_groups);
  const long long q0 = blockIdx.x % n_groups * kGroup;
  const int count = static_cast<int>(n_phases - q0 < kGroup ? n_phases - q0 : kGroup);
  const int numbers = spins * spins * pair.a * pair.b, step = static_cast<int>(gridDim.y * blockDim.x);
  for (int i = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x); i < numbers; i += step) {
    Complex<T> sum[kGroup] = {};
#pragma unroll 1  // otherwise the compiler takes more registers than there are
    for (long long e = pair.first; e < pair.last; ++e) {
      const Complex<T>* phase = coefficient + edges[6 * e + 1] * n_phases + q0;
      const T* number = blocks + Parts * (edges[6 * e] + i);
      const T x = number[0], y = Parts == 2 ? number[Parts - 1] : T(0);
#pragma unroll
      for (int q = 0; q < kGroup; ++q) {
        if (q >= count) continue;
        const Complex<T> c = phase[q];
        sum[q].re += Parts == 2 ? c.re * x - c.im * y : c.re * x;
        sum[q].im += Parts == 2 ? c.re * y + c.im * x : c.im * x;
      }
    }
    Complex<T>* to = dense + q0 * size * size + pair.place(i, spins, size);
#pragma unroll
    for (int q = 0; q < kGroup; ++q)
      if (q < count) to[q * size * size] = sum[q];
  }
}

template <typename T, int Parts>
__device__ void backward(const Complex<T>* grad, const Complex<T>* coefficient, const long long* edges,
                         const long long* pairs, long long n_phases, long long size, int spins, T* grad_blocks) {
  const Pair pair(edges, pairs, blockIdx.x);
  const int numbers = spins * spins * pair.a * pair.b, step = static_cast<int>(gridDim.y * blockDim.x);
  for (long long e0 = pair.first + blockIdx.z * kGroup; e0 < pair.last; e0 += gridDim.z * kGroup) {
    const int count = static_cast<int>(pair.last - e0 < kGroup ? pair.last - e0 : kGroup);
    const Complex<T>* phases[kGroup];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) phases[k] = coefficient + edges[6 * (k < count ? e0 + k : e0) + 1] * n_phases;
    for (int i = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x); i < numbers; i += step) {
      const Complex<T>* from = grad + pair.place(i, spins, size);
      Complex<T> sum[kGroup] = {};
#pragma unroll 1
      for (long long q = 0; q < n_phases; ++q) {
        const Complex<T> g = from[q * size * size];
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          const Complex<T> c = phases[k][q];
          sum[k].re += c.re * g.re + c.im * g.im;
          if (Parts == 2) sum[k].im += c.re * g.im - c.im * g.re;
        }
      }
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (k >= count) continue;
        T* to = grad_blocks + Parts * (edges[6 * (e0 + k)] + i);
        to[0] = sum[k].re;
        if (Parts == 2) to[Parts - 1] = sum[k].im;
      }
    }
  }
}

#define NEXTHAM_BLOCH_SUM(Name, T, Parts)                                                                            \
  extern "C" __global__ void __launch_bounds__(kThreads)                                                             \
      forward_##Name(const T* blocks, const Complex<T>* coefficient, const long long* edges, const long long* pairs, \
                     long long n_phases, long long size, int spins, Complex<T>* dense) {                             \
    forward<T, Parts>(blocks, coefficient, edges, pairs, n_phases, size, spins, dense);                              \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(kThreads)                                                             \
      backward_##Name(const Complex<T>* grad, const Complex<T>* coefficient, const long long* edges,                 \
                      const long long* pairs, long long n_phases, long long size, int spins, T* grad_blocks) {       \
    backward<T, Parts>(grad, coefficient, edges, pairs, n_phases, size, spins, grad_blocks);                         \
  }

NEXTHAM_BLOCH_SUM(float_1, float, 1)
NEXTHAM_BLOCH_SUM(float_2, float, 2)
NEXTHAM_BLOCH_SUM(double_1, double, 1)
NEXTHAM_BLOCH_SUM(double_2, double, 2)

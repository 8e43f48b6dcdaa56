// Tensor product of irreps features: the kernel of nextham_kernels/ops/tensor_product, which holds the formula.
//
// Parallel over tiles of rows, whose lanes they become (16 rows in float32 with AVX-512), so every multiplicity fills
// the vectors. One operand of a path, b (the harmonics in most models), is turned into the map M_ik = Σ_j c_ijk b_j
// once per channel and tile; every channel u of the other, a, then costs one multiply-add per non-zero M_ik, four
// channels at a time so that a load of M serves four. 'uvw', 'uuw' and 'u<vw' write the products z of a batch of
// channel pairs into the first-level cache and multiply them by the weights, 8 outputs × 3 components in registers.
// Nothing of the size rows × paths is ever stored: outputs are transposed back chunk by chunk (CHUNK of plan.py). A
// product with weights of its own for each row is bound by memory: it reads the operands and the weights once, and
// writes the result once.
//
// MACE's medium product, 1,000 rows, two cores (Xeon, AVX-512): 19 kB and 20 kFLOP per row in 1.7 µs, 46 % of the copy
// rate. 'uvw' with shared weights (DeepH-E3's): 3 kB and 179 kFLOP per row, 132 GFLOP/s where MKL's product reaches
// 300.
//
// Backward is the same loop turned round: grad_a_ui = w_u Σ_k M_ik g_uk, grad_w_u = Σ_i a_ui (…), and the derivative by
// b through grad_M_ik = Σ_u w_u a_ui g_uk. Weights shared by all rows get their gradient per thread, added up in the
// order of the threads; for 'uvw' four tiles at once are summed in registers before their lanes are.
#include <omp.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "lanes.h"
#include "module.h"
#include "rows.h"

namespace NEXTHAM_ISA {
namespace {

// Outputs of a mix of channels in registers, each with up to kComponents vectors.
constexpr int kOutputs = kVectorBytes == 64 ? 8 : 4;
constexpr int kComponents = 3;
// Channels that share a load of M.
constexpr int kBlock = 4;
// Tiles whose shared-weight gradient is summed before the lanes are: the sum over lanes costs 3 instructions a weight.
constexpr int kTiles = 4;
// Numbers per row of the products of a batch of channel pairs: 32 kB for 16 rows of float32.
constexpr std::int32_t kBatch = 512;
// Rows of weights up to this length are transposed whole, longer ones path by path: 256 kB for 16 rows of float32.
constexpr std::int64_t kWholeWeights = 4096;

// One path; the plan's page (plan.py) says the same in words.
struct Path {
  std::int32_t a_second;           // whether a is the second operand
  std::int32_t a, da, b, db;       // where the blocks begin, and numbers per channel
  std::int32_t out, dk;            // where its block begins in the chunk
  std::int32_t weight, n_weights;  // where its weights begin, -1 without; their number
  std::int32_t n_w;                // outputs of a mix, 0 where each pair has its own output
  std::int32_t group, n_groups;
  std::int32_t nonzero, n_nonzeros;
  std::int32_t by_k, by_i;  // where its row pointers begin
  std::int32_t own;         // place of its shared weights among those without a mix
};
// Pairs (u, v) of one channel of b: channels a … a + n - 1, pairs q, q + q_step …, outputs likewise.
struct Group {
  std::int32_t b, a, n, q, q_step, out, out_step;
};
// M_ik ≠ 0, sorted by k then i; its entries end before `end`.
struct Nonzero {
  std::int32_t i, k, end;
};
struct Chunk {
  std::int32_t path, n_paths, out, d;
};
// Part of a group whose products lie at `position` of a batch.
struct Segment {
  const Group* group;
  std::int32_t first, n, position;
};

// Calls f with the constant n, 1 ≤ n ≤ N.
template <int N, typename F>
__attribute__((always_inline)) inline void with_constant(int n, const F& f) {
  if constexpr (N > 1) {
    if (n < N) return with_constant<N - 1>(n, f);
  }
  f(std::integral_constant<int, N>{});
}

// The rows of a tile in a matrix [., d], some of them picked or summed by an index.
template <typename T>
struct Lines {
  T* row[kLanes<T>];

  Lines(T* base, std::int64_t d, const std::int64_t* index, std::int64_t first, std::int64_t end, T* none) {
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      const std::int64_t e = first + lane;
      row[lane] = e < end ? base + (index ? index[e] : e) * d : none;
    }
  }
  void at(std::int64_t offset, T* (&to)[kLanes<T>]) const {
    for (int lane = 0; lane < kLanes<T>; ++lane) to[lane] = row[lane] + offset;
  }
  void read(std::int64_t offset, std::int64_t d, std::remove_const_t<T>* tile) const {
    T* from[kLanes<T>];
    at(offset, from);
    rows_to_tile<std::remove_const_t<T>>(from, d, tile, kLanes<T>);
  }
  void write(std::int64_t offset, std::int64_t d, const T* tile) const {
    T* to[kLanes<T>];
    at(offset, to);
    tile_to_rows<T>(tile, kLanes<T>, d, to);
  }
  // Adds lane after lane, as several may be the same row; `between` holds kLanes d numbers.
  void add(std::int64_t offset, std::int64_t d, const T* tile, T* between) const {
    T* to[kLanes<T>];
    for (int lane = 0; lane < kLanes<T>; ++lane) to[lane] = between + lane * d;
    tile_to_rows<T>(tile, kLanes<T>, d, to);
    for (int lane = 0; lane < kLanes<T>; ++lane)
      for (std::int64_t c = 0; c < d; ++c) row[lane][offset + c] += to[lane][c];
  }
};

// The weights of one path: none, one number for all rows, or a tile.
enum class Weights { none, shared, rows };

template <Weights kind, typename T>
__attribute__((always_inline)) inline Vector<T> weight_at(const T* w, std::int64_t i) {
  if constexpr (kind == Weights::rows) return load(w + i * kLanes<T>);
  if constexpr (kind == Weights::shared) return w[i] - Vector<T>{};
  return T(1) - Vector<T>{};
}

// A table of the plan, read where it lies.
template <typename S, typename T = std::int32_t>
class Table {
 public:
  explicit Table(const Array<T>& a)
      : data_(reinterpret_cast<const S*>(in(a))), size_(a.size() * sizeof(T) / sizeof(S)) {}
  const S* begin() const { return data_; }
  const S* end() const { return data_ + size_; }
  const S& operator[](std::int64_t i) const { return data_[i]; }

 private:
  const S* data_;
  std::int64_t size_;
};

using Ints = Array<std::int32_t>;
using Index = Array<std::int64_t>;

template <typename T>
class Plan {
 public:
  Plan(const Ints& paths, const Ints& groups, const Ints& nonzeros, const Ints& entries, const Array<T>& coefficients,
       const Ints& pointers, const Ints& order, const Ints& chunks)
      : paths_(paths),
        groups_(groups),
        nonzeros_(nonzeros),
        entry_(entries),
        pointer_(pointers),
        order_(order),
        chunks_(chunks),
        coefficient_(coefficients) {
    for (const Path& p : paths_) {
      most_nonzeros_ = std::max(most_nonzeros_, p.n_nonzeros);
      most_weights_ = std::max(most_weights_, p.n_weights);
      most_da_ = std::max(most_da_, p.da);
      if (p.n_w) {
        mixes_ = true;
        most_z_ = std::max(most_z_, batch_of(p) * p.dk);
      } else {
        n_own_ += p.n_weights;
      }
    }
    for (const Chunk& c : chunks_) most_chunk_ = std::max(most_chunk_, c.d);
  }

  void forward(const Array<T>& x_, const Array<T>& y_, const Array<T>& weight_, const Index& pick_, const Index& edge_,
               const Index& into_, Array<T>& out_) const {
    const T *x = in(x_), *y = in(y_), *weight = in(weight_);
    const std::int64_t n = edge_.size() ? edge_.size() : y_.shape(0);
    const std::int64_t d1 = x_.shape(1), d2 = y_.shape(1), d3 = out_.shape(1);
    const bool rows = weight_.ndim() == 2;
    const std::int64_t d_w = weight_.shape(weight_.ndim() - 1);
    const std::int64_t *pick = index_of(pick_), *edge = index_of(edge_), *into = index_of(into_);
    T* out = ::out(out_);
    if (into) std::fill_n(out, out_.size(), T(0));
    over_threads(n, 1, into, [&](int, std::int64_t begin, std::int64_t end) {
      Scratch s(*this, d1, d2, d3, rows ? d_w : 0, 1, false);
      for (std::int64_t first = begin; first < end; first += kLanes<T>) {
        const Lines<const T> lx(x, d1, pick, first, end, s.zeros.get()), ly(y, d2, edge, first, end, s.zeros.get());
        const Lines<const T> lw(weight, d_w, edge, first, end, s.zeros.get());
        const Lines<T> lo(out, d3, into, first, end, s.nowhere.get());
        lx.read(0, d1, s.x.get());
        ly.read(0, d2, s.y.get());
        if (rows && d_w <= kWholeWeights) lw.read(0, d_w, s.w.get());
        for (const Chunk& c : chunks_) {
          std::fill_n(s.g.get(), c.d * kLanes<T>, T(0));
          for (const Path* p = &paths_[c.path]; p < paths_.begin() + c.path + c.n_paths; ++p) {
            const T* w = weight + std::max(p->weight, 0);
            if (rows && p->weight >= 0) w = tile_of_weights(*p, lw, d_w, s.w.get());
            with_weights(*p, rows, [&](auto kind) { run<kind()>(*p, w, s); });
          }
          into ? lo.add(c.out, c.d, s.g.get(), s.between.get()) : lo.write(c.out, c.d, s.g.get());
        }
      }
    });
  }

  // The gradients that are wanted; grad_weight of shared weights comes as zeros. With indices, `pick` is sorted, and
  // grad_x sums the rows that share one.
  void backward(const Array<T>& grad_, const Array<T>& x_, const Array<T>& y_, const Array<T>& weight_,
                const Index& pick_, const Index& edge_, const Index& into_, bool wants_x, bool wants_y,
                bool wants_weight, Array<T>& grad_x_, Array<T>& grad_y_, Array<T>& grad_weight_) const {
    const T *grad = in(grad_), *x = in(x_), *y = in(y_), *weight = in(weight_);
    const std::int64_t n = edge_.size() ? edge_.size() : y_.shape(0);
    const std::int64_t d1 = x_.shape(1), d2 = y_.shape(1), d3 = grad_.shape(1);
    const bool rows = weight_.ndim() == 2;
    const std::int64_t d_w = weight_.shape(weight_.ndim() - 1);
    const std::int64_t *pick = index_of(pick_), *edge = index_of(edge_), *into = index_of(into_);
    T *grad_x = ::out(grad_x_), *grad_y = ::out(grad_y_), *grad_weight = ::out(grad_weight_);
    const bool own = wants_weight && !rows;
    const int n_tiles = own && mixes_ ? kTiles : 1;
    const std::int64_t n_most = omp_get_max_threads();
    const auto sums_own = buffer<T>(own ? n_most * d_w : 0);
    if (own) std::fill_n(sums_own.get(), n_most * d_w, T(0));
    if (pick && wants_x) std::fill_n(grad_x, grad_x_.size(), T(0));
    over_threads(n, n_tiles, pick, [&](int thread, std::int64_t begin, std::int64_t end) {
      Scratch s(*this, d1, d2, d3, rows ? d_w : 0, n_tiles, true);
      s.wants_a[0] = s.wants_b[1] = wants_x;
      s.wants_a[1] = s.wants_b[0] = wants_y;
      s.wants_weight = wants_weight;
      s.total = sums_own.get() + (own ? thread * d_w : 0);
      if (own) std::fill_n(s.own.get(), n_own_ * kLanes<T>, T(0));
      for (std::int64_t first = begin; first < end; first += n_tiles * kLanes<T>) {
        for (int t = 0; t < n_tiles; ++t) {
          const std::int64_t e = first + t * kLanes<T>;
          Lines<const T>(x, d1, pick, e, end, s.zeros.get()).read(0, d1, s.x.get() + t * s.size_x);
          Lines<const T>(y, d2, edge, e, end, s.zeros.get()).read(0, d2, s.y.get() + t * s.size_y);
        }
        std::fill_n(s.pull_x.get(), n_tiles * s.size_x, T(0));
        std::fill_n(s.pull_y.get(), n_tiles * s.size_y, T(0));
        const Lines<const T> lw(weight, d_w, edge, first, end, s.zeros.get());
        const Lines<T> lgw(grad_weight, d_w, edge, first, end, s.nowhere.get());
        if (rows && d_w <= kWholeWeights) lw.read(0, d_w, s.w.get());
        for (const Chunk& c : chunks_) {
          for (int t = 0; t < n_tiles && c.n_paths; ++t)
            Lines<const T>(grad, d3, into, first + t * kLanes<T>, end, s.zeros.get())
                .read(c.out, c.d, s.g.get() + t * s.size_g);
          for (const Path* p = &paths_[c.path]; p < paths_.begin() + c.path + c.n_paths; ++p) {
            const T* w = weight + std::max(p->weight, 0);
            if (rows && p->weight >= 0) w = tile_of_weights(*p, lw, d_w, s.w.get());
            T* pull_w = s.pull_w.get() + (d_w <= kWholeWeights ? std::max(p->weight, 0) * kLanes<T> : 0);
            with_weights(*p, rows, [&](auto kind) { pull<kind()>(*p, w, pull_w, s); });
            if (rows && wants_weight && d_w > kWholeWeights && p->weight >= 0)
              lgw.write(p->weight, p->n_weights, pull_w);
          }
        }
        if (rows && wants_weight && d_w <= kWholeWeights) lgw.write(0, d_w, s.pull_w.get());
        for (int t = 0; t < n_tiles; ++t) {
          const std::int64_t e = first + t * kLanes<T>;
          const Lines<T> lx(grad_x, d1, pick, e, end, s.nowhere.get());
          const T* pull_x = s.pull_x.get() + t * s.size_x;
          if (wants_x) pick ? lx.add(0, d1, pull_x, s.between.get()) : lx.write(0, d1, pull_x);
          if (wants_y) Lines<T>(grad_y, d2, edge, e, end, s.nowhere.get()).write(0, d2, s.pull_y.get() + t * s.size_y);
        }
      }
      if (own) {
        for (const Path& p : paths_) {
          if (p.weight < 0 || p.n_w) continue;
          for (std::int32_t i = 0; i < p.n_weights; ++i)
            for (int lane = 0; lane < kLanes<T>; ++lane) s.total[p.weight + i] += s.own[(p.own + i) * kLanes<T> + lane];
        }
      }
    });
    if (own)
      for (std::int64_t t = 0; t < n_most; ++t)
        for (std::int64_t i = 0; i < d_w; ++i) grad_weight[i] += sums_own[t * d_w + i];
  }

 private:
  Table<Path> paths_;
  Table<Group> groups_;
  Table<Nonzero> nonzeros_;
  Table<std::int32_t> entry_, pointer_, order_;
  Table<Chunk> chunks_;
  Table<T, T> coefficient_;
  std::int32_t most_nonzeros_ = 0, most_weights_ = 0, most_da_ = 0, most_z_ = 0, most_chunk_ = 0, n_own_ = 0;
  bool mixes_ = false;

  // What one thread works in; tiles of a super-tile lie one behind the other.
  struct Scratch {
    std::int64_t size_x, size_y, size_g, size_z;
    int n_tiles;
    Buffer<T> zeros, nowhere, x, y, w, g, m, z, between, pull_x, pull_y, pull_w, pull_m, pull_z, scaled, own;
    std::vector<Segment> segments;
    std::vector<std::int32_t> q;
    bool wants_a[2] = {false, false}, wants_b[2] = {false, false}, wants_weight = false;
    T* total = nullptr;

    Scratch(const Plan& plan, std::int64_t d1, std::int64_t d2, std::int64_t d3, std::int64_t d_w, int n_tiles_,
            bool backward)
        : size_x(d1 * kLanes<T>),
          size_y(d2 * kLanes<T>),
          size_g(plan.most_chunk_ * kLanes<T>),
          size_z(plan.most_z_ * kLanes<T>),
          n_tiles(n_tiles_) {
      constexpr std::int64_t w = kLanes<T>;
      const std::int64_t widest = std::max({d1, d2, d3, d_w, std::int64_t(1)});
      const std::int64_t n_w = d_w <= kWholeWeights ? d_w : plan.most_weights_;
      zeros = buffer<T>(widest);
      std::fill_n(zeros.get(), widest, T(0));
      nowhere = buffer<T>(widest);
      std::fill_n(nowhere.get(), widest, T(0));
      x = buffer<T>(n_tiles * size_x);
      y = buffer<T>(n_tiles * size_y);
      this->w = buffer<T>(n_w * w);
      g = buffer<T>(n_tiles * size_g);
      m = buffer<T>(plan.most_nonzeros_ * w);
      z = buffer<T>(n_tiles * size_z);
      between = buffer<T>(std::max<std::int64_t>(plan.most_chunk_, d1) * w);
      if (!backward) return;
      pull_x = buffer<T>(n_tiles * size_x);
      pull_y = buffer<T>(n_tiles * size_y);
      pull_w = buffer<T>(n_w * w);
      pull_m = buffer<T>(plan.most_nonzeros_ * w);
      pull_z = buffer<T>(size_z);
      scaled = buffer<T>(kBlock * plan.most_da_ * w);
      own = buffer<T>(plan.n_own_ * w);
    }
  };

  static const std::int64_t* index_of(const Index& index) { return index.size() ? in(index) : nullptr; }
  static std::int32_t batch_of(const Path& p) { return std::max(16, kBatch / p.dk); }

  // f(thread, begin, end) for a share of the rows each; shares end where the sorted index changes, if there is one.
  template <typename F>
  static void over_threads(std::int64_t n, int n_tiles, const std::int64_t* sorted, const F& f) {
    const std::int64_t step = n_tiles * kLanes<T>, n_steps = (n + step - 1) / step;
    const int n_threads = std::max<std::int64_t>(1, std::min<std::int64_t>(omp_get_max_threads(), n_steps));
    const auto share = [&](std::int64_t thread) {
      std::int64_t e = std::min(n, n_steps * thread / n_threads * step);
      while (sorted && 0 < e && e < n && sorted[e] == sorted[e - 1]) ++e;
      return e;
    };
#pragma omp parallel for num_threads(n_threads) if (n_threads > 1) schedule(static, 1)
    for (int thread = 0; thread < n_threads; ++thread) f(thread, share(thread), share(thread + 1));
  }

  template <typename F>
  static void with_weights(const Path& p, bool rows, const F& f) {
    if (p.weight < 0) return f(std::integral_constant<Weights, Weights::none>{});
    if (rows) return f(std::integral_constant<Weights, Weights::rows>{});
    f(std::integral_constant<Weights, Weights::shared>{});
  }

  static const T* tile_of_weights(const Path& p, const Lines<const T>& lines, std::int64_t d_w, T* tile) {
    if (d_w <= kWholeWeights) return tile + p.weight * kLanes<T>;
    lines.read(p.weight, p.n_weights, tile);
    return tile;
  }

  void map_of(const Path& p, const T* b, T* m) const {
    const Nonzero* z = &nonzeros_[p.nonzero];
    std::int32_t e = p.nonzero ? z[-1].end : 0;
    for (std::int32_t i = 0; i < p.n_nonzeros; ++i) {
      Vector<T> sum{};
      for (; e < z[i].end; ++e) sum += coefficient_[e] * load(b + entry_[e] * kLanes<T>);
      store(m + i * kLanes<T>, sum);
    }
  }
  // grad_b_j += Σ c grad_M
  void pull_map(const Path& p, const T* pull_m, T* pull_b) const {
    const Nonzero* z = &nonzeros_[p.nonzero];
    std::int32_t e = p.nonzero ? z[-1].end : 0;
    for (std::int32_t i = 0; i < p.n_nonzeros; ++i) {
      const Vector<T> g = load(pull_m + i * kLanes<T>);
      for (; e < z[i].end; ++e) {
        T* at = pull_b + entry_[e] * kLanes<T>;
        store(at, load(at) + coefficient_[e] * g);
      }
    }
  }

  // out_nk (+)= w_n Σ_i M_ik a_ni for N channels
  template <int N, Weights kind, bool add>
  __attribute__((always_inline)) inline void apply(const Path& p, const T* m, const T* a, const T* w,
                                                   std::int64_t w_step, T* out, std::int64_t out_step) const {
    const std::int32_t* end = &pointer_[p.by_k];
    const Nonzero* nonzero = &nonzeros_[p.nonzero];
    const std::int64_t step = p.da * kLanes<T>;
    Vector<T> weight[N];
    if constexpr (kind != Weights::none) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) weight[n] = weight_at<kind>(w, n * w_step);
    }
    for (std::int32_t k = 0, z = 0; k < p.dk; ++k) {
      Vector<T> sum[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[n] = Vector<T>{};
      for (; z < end[k + 1]; ++z) {
        const Vector<T> m_ik = load(m + z * kLanes<T>);
        const T* a_i = a + nonzero[z].i * kLanes<T>;
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum[n] += m_ik * load(a_i + n * step);
      }
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        T* at = out + (n * out_step + k) * kLanes<T>;
        if constexpr (kind != Weights::none) sum[n] *= weight[n];
        store(at, add ? load(at) + sum[n] : sum[n]);
      }
    }
  }

  // With g_nk: grad_a_ni += w_n Σ_k M_ik g_nk, grad_w_n (+)= Σ_i a_ni Σ_k M_ik g_nk, grad_M_ik += Σ_n w_n a_ni g_nk
  template <int N, Weights kind>
  __attribute__((always_inline)) inline void pull_block(const Path& p, const T* m, const T* a, const T* w,
                                                        std::int64_t w_step, const T* g, std::int64_t g_step, T* pull_a,
                                                        T* pull_w, T* pull_m, T* scaled) const {
    const Nonzero* nonzero = &nonzeros_[p.nonzero];
    const std::int64_t step = p.da * kLanes<T>, g_row = g_step * kLanes<T>;
    Vector<T> weight[N], sum_w[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      sum_w[n] = Vector<T>{};
      if constexpr (kind != Weights::none) weight[n] = weight_at<kind>(w, n * w_step);
    }
    if (pull_a || pull_w) {
      const std::int32_t *end = &pointer_[p.by_i], *order = &order_[p.nonzero];
      for (std::int32_t i = 0, c = 0; i < p.da; ++i) {
        Vector<T> sum[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum[n] = Vector<T>{};
        for (; c < end[i + 1]; ++c) {
          const Vector<T> m_ik = load(m + order[c] * kLanes<T>);
          const T* g_k = g + nonzero[order[c]].k * kLanes<T>;
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) sum[n] += m_ik * load(g_k + n * g_row);
        }
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          const std::int64_t at = n * step + i * kLanes<T>;
          if constexpr (kind != Weights::none) {
            sum_w[n] += load(a + at) * sum[n];
            sum[n] *= weight[n];
          }
          if (pull_a) store(pull_a + at, load(pull_a + at) + sum[n]);
        }
      }
    }
    if constexpr (kind != Weights::none) {
      if (pull_w) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          T* at = pull_w + n * w_step * kLanes<T>;
          store(at, kind == Weights::shared ? load(at) + sum_w[n] : sum_w[n]);
        }
      }
    }
    if (!pull_m) return;
    if constexpr (kind != Weights::none) {
      for (int n = 0; n < N; ++n)
        for (std::int32_t i = 0; i < p.da; ++i) {
          const std::int64_t at = n * step + i * kLanes<T>;
          store(scaled + at, weight[n] * load(a + at));
        }
      a = scaled;
    }
    for (std::int32_t z = 0; z < p.n_nonzeros; ++z) {
      const T *a_i = a + nonzero[z].i * kLanes<T>, *g_k = g + nonzero[z].k * kLanes<T>;
      Vector<T> sum = load(pull_m + z * kLanes<T>);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum += load(a_i + n * step) * load(g_k + n * g_row);
      store(pull_m + z * kLanes<T>, sum);
    }
  }

  // f(segments, q) over batches of the pairs of a path, q being the pairs' rows of weights.
  template <typename F>
  void each_batch(const Path& p, Scratch& s, const F& f) const {
    const std::int32_t most = batch_of(p);
    s.segments.clear();
    s.q.clear();
    for (const Group* group = &groups_[p.group]; group < groups_.begin() + p.group + p.n_groups; ++group) {
      for (std::int32_t first = 0; first < group->n;) {
        const std::int32_t n = std::min<std::int32_t>(group->n - first, most - s.q.size());
        s.segments.push_back({group, first, n, static_cast<std::int32_t>(s.q.size())});
        for (std::int32_t i = 0; i < n; ++i) s.q.push_back(group->q + (first + i) * group->q_step);
        first += n;
        if (static_cast<std::int32_t>(s.q.size()) == most) {
          f();
          s.segments.clear();
          s.q.clear();
        }
      }
    }
    if (!s.q.empty()) f();
  }

  template <Weights kind>
  void run(const Path& p, const T* w, Scratch& s) const {
    constexpr std::int64_t l = kLanes<T>;
    const T *a = (p.a_second ? s.y : s.x).get() + p.a * l, *b = (p.a_second ? s.x : s.y).get() + p.b * l;
    T *out = s.g.get() + p.out * l, *m = s.m.get();
    if (!p.n_w) {
      for (const Group* group = &groups_[p.group]; group < groups_.begin() + p.group + p.n_groups; ++group) {
        map_of(p, b + group->b * p.db * l, m);
        for (std::int32_t n = 0; n < group->n; n += kBlock)
          with_constant<kBlock>(std::min(kBlock, group->n - n), [&](auto block) {
            const std::int64_t q = group->q + n * group->q_step;
            apply<block(), kind, true>(p, m, a + (group->a + n) * p.da * l, at_weight<kind>(w, q), group->q_step,
                                       out + (group->out + n * group->out_step) * p.dk * l, group->out_step * p.dk);
          });
      }
      return;
    }
    each_batch(p, s, [&] {
      for (const Segment& segment : s.segments) products(p, segment, a, b, m, s.z.get());
      if constexpr (kind != Weights::none) mix<kind>(p, w, s.q, s.z.get(), out);
    });
  }

  template <Weights kind>
  static const T* at_weight(const T* w, std::int64_t q) {
    return w + q * (kind == Weights::rows ? kLanes<T> : 1);
  }

  // z of a segment; leaves its map in m
  void products(const Path& p, const Segment& segment, const T* a, const T* b, T* m, T* z) const {
    constexpr std::int64_t l = kLanes<T>;
    map_of(p, b + segment.group->b * p.db * l, m);
    if (!z) return;
    for (std::int32_t n = 0; n < segment.n; n += kBlock)
      with_constant<kBlock>(std::min(kBlock, segment.n - n), [&](auto block) {
        apply<block(), Weights::none, false>(p, m, a + (segment.group->a + segment.first + n) * p.da * l, nullptr, 0,
                                             z + (segment.position + n) * p.dk * l, p.dk);
      });
  }

  // f(N, K, o, k) for blocks of n outputs and of components
  template <typename F>
  static void each_tile(std::int32_t n, std::int32_t dk, const F& f) {
    for (std::int32_t k = 0; k < dk; k += kComponents)
      with_constant<kComponents>(std::min(kComponents, dk - k), [&](auto n_k) {
        for (std::int32_t o = 0; o < n; o += kOutputs)
          with_constant<kOutputs>(std::min(kOutputs, n - o), [&](auto n_o) { f(n_o, n_k, o, k); });
      });
  }

  // out_wk += Σ_q W_qw z_qk
  template <Weights kind>
  static void mix(const Path& p, const T* w, const std::vector<std::int32_t>& q, const T* z, T* out) {
    constexpr std::int64_t l = kLanes<T>;
    each_tile(p.n_w, p.dk, [&](auto n_o, auto n_k, std::int32_t o, std::int32_t k) {
      constexpr int N = n_o(), K = n_k();
      Vector<T> sum[N][K];
      T* at = out + (o * p.dk + k) * l;
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
#pragma GCC unroll 3
        for (int c = 0; c < K; ++c) sum[n][c] = load(at + (n * p.dk + c) * l);
      const T* z_k = z + k * l;
      for (const std::int32_t pair : q) {
        Vector<T> z_c[K];
#pragma GCC unroll 3
        for (int c = 0; c < K; ++c) z_c[c] = load(z_k + c * l);
        const T* row = at_weight<kind>(w, std::int64_t(pair) * p.n_w + o);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          const Vector<T> weight = weight_at<kind>(row, n);
#pragma GCC unroll 3
          for (int c = 0; c < K; ++c) sum[n][c] += weight * z_c[c];
        }
        z_k += p.dk * l;
      }
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
#pragma GCC unroll 3
        for (int c = 0; c < K; ++c) store(at + (n * p.dk + c) * l, sum[n][c]);
    });
  }

  // grad_z_qk = Σ_w W_qw g_wk
  template <Weights kind>
  static void pull_mix(const Path& p, const T* w, const std::vector<std::int32_t>& q, const T* g, T* pull_z) {
    constexpr std::int64_t l = kLanes<T>;
    each_tile(q.size(), p.dk, [&](auto n_o, auto n_k, std::int32_t o, std::int32_t k) {
      constexpr int N = n_o(), K = n_k();
      Vector<T> sum[N][K];
      const T* row[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        row[n] = at_weight<kind>(w, std::int64_t(q[o + n]) * p.n_w);
#pragma GCC unroll 3
        for (int c = 0; c < K; ++c) sum[n][c] = Vector<T>{};
      }
      const T* g_k = g + k * l;
      for (std::int32_t i = 0; i < p.n_w; ++i, g_k += p.dk * l) {
        Vector<T> g_c[K];
#pragma GCC unroll 3
        for (int c = 0; c < K; ++c) g_c[c] = load(g_k + c * l);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          const Vector<T> weight = weight_at<kind>(row[n], i);
#pragma GCC unroll 3
          for (int c = 0; c < K; ++c) sum[n][c] += weight * g_c[c];
        }
      }
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
#pragma GCC unroll 3
        for (int c = 0; c < K; ++c) store(pull_z + ((o + n) * p.dk + k + c) * l, sum[n][c]);
    });
  }

  // grad_W_qw = Σ_k z_qk g_wk: of each row, or added up over the rows of the super-tile
  template <Weights kind>
  static void pull_weights(const Path& p, Scratch& s, const T* g, T* pull_w) {
    constexpr std::int64_t l = kLanes<T>;
    for (std::size_t i = 0; i < s.q.size(); ++i) {
      const std::int64_t place = std::int64_t(s.q[i]) * p.n_w;
      const T* z = s.z.get() + i * p.dk * l;
      if constexpr (kind == Weights::rows) {
        for (std::int32_t o = 0; o < p.n_w; ++o) {
          Vector<T> sum{};
          for (std::int32_t k = 0; k < p.dk; ++k) sum += load(z + k * l) * load(g + (o * p.dk + k) * l);
          store(pull_w + (place + o) * l, sum);
        }
      } else {
        for (std::int32_t o = 0; o < p.n_w; o += l)
          with_constant<kLanes<T>>(std::min<int>(l, p.n_w - o), [&](auto n_o) {
            constexpr int N = n_o();
            Vector<T> sum[l];
#pragma GCC unroll 16
            for (int n = 0; n < l; ++n) sum[n] = Vector<T>{};
            for (int t = 0; t < s.n_tiles; ++t) {
              const T *z_t = z + t * s.size_z, *g_t = g + t * s.size_g + o * p.dk * l;
              for (std::int32_t k = 0; k < p.dk; ++k) {
                const Vector<T> z_k = load(z_t + k * l);
#pragma GCC unroll 16
                for (int n = 0; n < N; ++n) sum[n] += z_k * load(g_t + (n * p.dk + k) * l);
              }
            }
            const Vector<T> total = sums<T>(sum);
            T* at = pull_w + place + o;
            if constexpr (N == l) {
              store_anywhere(at, load_anywhere(at) + total);
            } else {
              for (int n = 0; n < N; ++n) at[n] += total[n];
            }
          });
      }
    }
  }

  template <Weights kind>
  void pull(const Path& p, const T* w, T* pull_w, Scratch& s) const {
    constexpr std::int64_t l = kLanes<T>;
    const bool wants_a = s.wants_a[p.a_second], wants_b = s.wants_b[p.a_second];
    const bool wants_w = s.wants_weight && kind != Weights::none;
    const std::int64_t size_a = p.a_second ? s.size_y : s.size_x, size_b = p.a_second ? s.size_x : s.size_y;
    const T *a = (p.a_second ? s.y : s.x).get() + p.a * l, *b = (p.a_second ? s.x : s.y).get() + p.b * l;
    T* pull_a = (p.a_second ? s.pull_y : s.pull_x).get() + p.a * l;
    T* pull_b = (p.a_second ? s.pull_x : s.pull_y).get() + p.b * l;
    T *m = s.m.get(), *pull_m = wants_b ? s.pull_m.get() : nullptr;
    const T* g = s.g.get() + p.out * l;
    if (!p.n_w) {
      if (kind == Weights::shared && wants_w) pull_w = s.own.get() + p.own * l;
      for (int t = 0; t < s.n_tiles; ++t)
        for (const Group* group = &groups_[p.group]; group < groups_.begin() + p.group + p.n_groups; ++group) {
          map_of(p, b + t * size_b + group->b * p.db * l, m);
          if (wants_b) std::fill_n(pull_m, p.n_nonzeros * l, T(0));
          for (std::int32_t n = 0; n < group->n; n += kBlock)
            with_constant<kBlock>(std::min(kBlock, group->n - n), [&](auto block) {
              const std::int64_t q = group->q + n * group->q_step, at = t * size_a + (group->a + n) * p.da * l;
              pull_block<block(), kind>(p, m, a + at, at_weight<kind>(w, q), group->q_step,
                                        g + t * s.size_g + (group->out + n * group->out_step) * p.dk * l,
                                        group->out_step * p.dk, wants_a ? pull_a + at : nullptr,
                                        wants_w ? pull_w + q * l : nullptr, pull_m, s.scaled.get());
            });
          if (wants_b) pull_map(p, pull_m, pull_b + t * size_b + group->b * p.db * l);
        }
      return;
    }
    each_batch(p, s, [&] {
      for (int t = 0; t < s.n_tiles; ++t) {
        if (kind != Weights::none && (wants_a || wants_b))
          pull_mix<kind == Weights::none ? Weights::shared : kind>(p, w, s.q, g + t * s.size_g, s.pull_z.get());
        for (const Segment& segment : s.segments) {
          const Group& group = *segment.group;
          products(p, segment, a + t * size_a, b + t * size_b, m, wants_w ? s.z.get() + t * s.size_z : nullptr);
          if (!wants_a && !wants_b) continue;
          if (wants_b) std::fill_n(pull_m, p.n_nonzeros * l, T(0));
          for (std::int32_t n = 0; n < segment.n; n += kBlock)
            with_constant<kBlock>(std::min(kBlock, segment.n - n), [&](auto block) {
              const std::int64_t at = t * size_a + (group.a + segment.first + n) * p.da * l;
              pull_block<block(), Weights::none>(p, m, a + at, nullptr, 0,
                                                 s.pull_z.get() + (segment.position + n) * p.dk * l, p.dk,
                                                 wants_a ? pull_a + at : nullptr, nullptr, pull_m, s.scaled.get());
            });
          if (wants_b) pull_map(p, pull_m, pull_b + t * size_b + group.b * p.db * l);
        }
      }
      if constexpr (kind != Weights::none) {
        if (wants_w) pull_weights<kind>(p, s, g, kind == Weights::shared ? s.total + p.weight : pull_w);
      }
    });
  }
};

template <typename T>
void forward(const Ints& paths, const Ints& groups, const Ints& nonzeros, const Ints& entries,
             const Array<T>& coefficients, const Ints& pointers, const Ints& order, const Ints& chunks,
             const Array<T>& x, const Array<T>& y, const Array<T>& weight, const Index& pick, const Index& edge,
             const Index& into, Array<T>& out) {
  Plan<T>(paths, groups, nonzeros, entries, coefficients, pointers, order, chunks)
      .forward(x, y, weight, pick, edge, into, out);
}

template <typename T>
void backward(const Ints& paths, const Ints& groups, const Ints& nonzeros, const Ints& entries,
              const Array<T>& coefficients, const Ints& pointers, const Ints& order, const Ints& chunks,
              const Array<T>& grad, const Array<T>& x, const Array<T>& y, const Array<T>& weight, const Index& pick,
              const Index& edge, const Index& into, bool wants_x, bool wants_y, bool wants_weight, Array<T>& grad_x,
              Array<T>& grad_y, Array<T>& grad_weight) {
  Plan<T>(paths, groups, nonzeros, entries, coefficients, pointers, order, chunks)
      .backward(grad, x, y, weight, pick, edge, into, wants_x, wants_y, wants_weight, grad_x, grad_y, grad_weight);
}

template <typename T>
void bind(Module& m) {
  m.def("tensor_product_forward", &forward<T>);
  m.def("tensor_product_backward", &backward<T>);
}

}  // namespace

void bind_tensor_product(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA

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
#include "tensor_product_mix.h"
#include "tensor_product_tables.h"
#include "tiles.h"

namespace NEXTHAM_ISA {
namespace {

// Channels that share a load of M.
constexpr int kBlock = 4;
// Tiles whose shared-weight gradient is summed before the lanes are: the sum over lanes costs 3 instructions a weight.
constexpr int kTiles = 4;
// Numbers per row of the products of a batch of channel pairs: 32 kB for 16 rows of float32.
constexpr std::int32_t kBatch = 512;
// Rows of weights up to this length are transposed whole, longer ones path by path: 256 kB for 16 rows of float32.
constexpr std::int64_t kWholeWeights = 4096;

// Part of a group whose products lie at `position` of a batch.
struct Segment {
  const Group* group;
  std::int32_t first, n, position;
};

using Index = Array<std::int64_t>;

// Rows x[pick[e]], y[edge[e]] and weights of edge[e] give a product that goes to row into[e]; without indices all are
// e.
template <typename T>
struct Operands {
  const T *x, *y, *weight;
  const std::int64_t *pick, *edge, *into;
  std::int64_t n, d1, d2, d3, d_w;
  bool rows;  // whether each row has weights of its own

  Operands(const Array<T>& x_, const Array<T>& y_, const Array<T>& weight_, const Index& pick_, const Index& edge_,
           const Index& into_, const Array<T>& out)
      : x(in(x_)),
        y(in(y_)),
        weight(in(weight_)),
        pick(pick_.size() ? in(pick_) : nullptr),
        edge(edge_.size() ? in(edge_) : nullptr),
        into(into_.size() ? in(into_) : nullptr),
        n(edge ? edge_.size() : y_.shape(0)),
        d1(x_.shape(1)),
        d2(y_.shape(1)),
        d3(out.shape(1)),
        d_w(weight_.shape(weight_.ndim() - 1)),
        rows(weight_.ndim() == 2) {}
};

// Null where a gradient is not wanted.
template <typename T>
struct Gradients {
  T *x, *y, *weight;
};

template <typename T>
class Plan {
 public:
  Plan(const Array<std::int32_t>& tables, const Array<T>& coefficients) : t_(tables, coefficients) {
    for (const Path& p : t_.paths)
      if (p.n_w) most_z_ = std::max(most_z_, batch_of(p) * p.dk);
  }

  // Products that go to rows of `into` are added.
  void forward(const Operands<T>& o, T* out) const {
    over_threads(o.n, 1, o.into, [&](int, std::int64_t begin, std::int64_t end) {
      Scratch s(*this, o, 1, false);
      for (std::int64_t first = begin; first < end; first += kLanes<T>) {
        const Lines<const T> lx(o.x, o.d1, o.pick, first, end, s.zeros.get());
        const Lines<const T> ly(o.y, o.d2, o.edge, first, end, s.zeros.get());
        const Lines<const T> lw(o.weight, o.d_w, o.edge, first, end, s.zeros.get());
        const Lines<T> lo(out, o.d3, o.into, first, end, s.nowhere.get());
        lx.read(0, o.d1, s.x.get());
        ly.read(0, o.d2, s.y.get());
        if (o.rows && o.d_w <= kWholeWeights) lw.read(0, o.d_w, s.w.get());
        for (const Chunk& c : t_.chunks) {
          std::fill_n(s.g.get(), c.d * kLanes<T>, T(0));
          for (const Path* p = &t_.paths[c.path]; p < t_.paths.begin() + c.path + c.n_paths; ++p) {
            const T* w = o.weight + std::max(p->weight, 0);
            if (o.rows && p->weight >= 0) w = tile_of_weights(*p, lw, o.d_w, s.w.get());
            with_weights(*p, o.rows, [&](auto kind) { run<kind()>(*p, w, s); });
          }
          o.into ? lo.add(c.out, c.d, s.g.get(), s.between.get()) : lo.write(c.out, c.d, s.g.get());
        }
      }
    });
  }

  // Gradients of shared weights are added; with indices `pick` is sorted, and the rows that share one are added to
  // grad.x.
  void backward(const Operands<T>& o, const T* grad, const Gradients<T>& to) const {
    const bool own = to.weight && !o.rows, whole = o.d_w <= kWholeWeights;
    const int n_tiles = own && t_.mixes ? kTiles : 1;
    const std::int64_t n_most = omp_get_max_threads();
    const auto sums_own = buffer<T>(own ? n_most * o.d_w : 0);
    if (own) std::fill_n(sums_own.get(), n_most * o.d_w, T(0));
    over_threads(o.n, n_tiles, o.pick, [&](int thread, std::int64_t begin, std::int64_t end) {
      Scratch s(*this, o, n_tiles, true);
      s.wants_a[0] = s.wants_b[1] = to.x;
      s.wants_a[1] = s.wants_b[0] = to.y;
      s.wants_weight = to.weight;
      s.total = sums_own.get() + (own ? thread * o.d_w : 0);
      if (own) std::fill_n(s.own.get(), t_.n_own * kLanes<T>, T(0));
      for (std::int64_t first = begin; first < end; first += n_tiles * kLanes<T>) {
        for (int t = 0; t < n_tiles; ++t) {
          const std::int64_t e = first + t * kLanes<T>;
          Lines<const T>(o.x, o.d1, o.pick, e, end, s.zeros.get()).read(0, o.d1, s.x.get() + t * s.size_x);
          Lines<const T>(o.y, o.d2, o.edge, e, end, s.zeros.get()).read(0, o.d2, s.y.get() + t * s.size_y);
        }
        std::fill_n(s.pull_x.get(), n_tiles * s.size_x, T(0));
        std::fill_n(s.pull_y.get(), n_tiles * s.size_y, T(0));
        const Lines<const T> lw(o.weight, o.d_w, o.edge, first, end, s.zeros.get());
        const Lines<T> lgw(to.weight, o.d_w, o.edge, first, end, s.nowhere.get());
        if (o.rows && whole) lw.read(0, o.d_w, s.w.get());
        for (const Chunk& c : t_.chunks) {
          for (int t = 0; t < n_tiles && c.n_paths; ++t)
            Lines<const T>(grad, o.d3, o.into, first + t * kLanes<T>, end, s.zeros.get())
                .read(c.out, c.d, s.g.get() + t * s.size_g);
          for (const Path* p = &t_.paths[c.path]; p < t_.paths.begin() + c.path + c.n_paths; ++p) {
            const T* w = o.weight + std::max(p->weight, 0);
            if (o.rows && p->weight >= 0) w = tile_of_weights(*p, lw, o.d_w, s.w.get());
            T* pull_w = s.pull_w.get() + (whole ? std::max(p->weight, 0) * kLanes<T> : 0);
            with_weights(*p, o.rows, [&](auto kind) { pull<kind()>(*p, w, pull_w, s); });
            if (o.rows && to.weight && !whole && p->weight >= 0) lgw.write(p->weight, p->n_weights, pull_w);
          }
        }
        if (o.rows && to.weight && whole) lgw.write(0, o.d_w, s.pull_w.get());
        for (int t = 0; t < n_tiles; ++t) {
          const std::int64_t e = first + t * kLanes<T>;
          const Lines<T> lx(to.x, o.d1, o.pick, e, end, s.nowhere.get());
          const T* pull_x = s.pull_x.get() + t * s.size_x;
          if (to.x) o.pick ? lx.add(0, o.d1, pull_x, s.between.get()) : lx.write(0, o.d1, pull_x);
          if (to.y) Lines<T>(to.y, o.d2, o.edge, e, end, s.nowhere.get()).write(0, o.d2, s.pull_y.get() + t * s.size_y);
        }
      }
      if (own) {
        for (const Path& p : t_.paths) {
          if (p.weight < 0 || p.n_w) continue;
          for (std::int32_t i = 0; i < p.n_weights; ++i)
            for (int lane = 0; lane < kLanes<T>; ++lane) s.total[p.weight + i] += s.own[(p.own + i) * kLanes<T> + lane];
        }
      }
    });
    if (own)
      for (std::int64_t t = 0; t < n_most; ++t)
        for (std::int64_t i = 0; i < o.d_w; ++i) to.weight[i] += sums_own[t * o.d_w + i];
  }

 private:
  Tables<T> t_;
  std::int32_t most_z_ = 0;

  // What one thread works in; tiles of a super-tile lie one behind the other.
  struct Scratch {
    std::int64_t size_x, size_y, size_g, size_z;
    int n_tiles;
    Buffer<T> zeros, nowhere, x, y, w, g, m, z, between, pull_x, pull_y, pull_w, pull_m, pull_z, scaled, own;
    std::vector<Segment> segments;
    std::vector<std::int32_t> q;
    bool wants_a[2] = {false, false}, wants_b[2] = {false, false}, wants_weight = false;
    T* total = nullptr;

    Scratch(const Plan& plan, const Operands<T>& o, int n_tiles_, bool backward)
        : size_x(o.d1 * kLanes<T>),
          size_y(o.d2 * kLanes<T>),
          size_g(plan.t_.most_chunk * kLanes<T>),
          size_z(plan.most_z_ * kLanes<T>),
          n_tiles(n_tiles_) {
      constexpr std::int64_t w = kLanes<T>;
      const std::int64_t d_w = o.rows ? o.d_w : 0, widest = std::max({o.d1, o.d2, o.d3, d_w, std::int64_t(1)});
      const std::int64_t n_w = d_w <= kWholeWeights ? d_w : plan.t_.most_weights;
      zeros = buffer<T>(widest);
      std::fill_n(zeros.get(), widest, T(0));
      nowhere = buffer<T>(widest);
      std::fill_n(nowhere.get(), widest, T(0));
      x = buffer<T>(n_tiles * size_x);
      y = buffer<T>(n_tiles * size_y);
      this->w = buffer<T>(n_w * w);
      g = buffer<T>(n_tiles * size_g);
      m = buffer<T>(plan.t_.most_nonzeros * w);
      z = buffer<T>(n_tiles * size_z);
      between = buffer<T>(std::max<std::int64_t>(plan.t_.most_chunk, o.d1) * w);
      if (!backward) return;
      pull_x = buffer<T>(n_tiles * size_x);
      pull_y = buffer<T>(n_tiles * size_y);
      pull_w = buffer<T>(n_w * w);
      pull_m = buffer<T>(plan.t_.most_nonzeros * w);
      pull_z = buffer<T>(size_z);
      scaled = buffer<T>(kBlock * plan.t_.most_da * w);
      own = buffer<T>(plan.t_.n_own * w);
    }
  };

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
    const Nonzero* z = &t_.nonzeros[p.nonzero];
    std::int32_t e = p.nonzero ? z[-1].end : 0;
    for (std::int32_t i = 0; i < p.n_nonzeros; ++i) {
      Vector<T> sum{};
      for (; e < z[i].end; ++e) sum += t_.coefficients[e] * load(b + t_.entries[e] * kLanes<T>);
      store(m + i * kLanes<T>, sum);
    }
  }
  // grad_b_j += Σ c grad_M
  void pull_map(const Path& p, const T* pull_m, T* pull_b) const {
    const Nonzero* z = &t_.nonzeros[p.nonzero];
    std::int32_t e = p.nonzero ? z[-1].end : 0;
    for (std::int32_t i = 0; i < p.n_nonzeros; ++i) {
      const Vector<T> g = load(pull_m + i * kLanes<T>);
      for (; e < z[i].end; ++e) {
        T* at = pull_b + t_.entries[e] * kLanes<T>;
        store(at, load(at) + t_.coefficients[e] * g);
      }
    }
  }

  // out_nk (+)= w_n Σ_i M_ik a_ni for N channels
  template <int N, Weights kind, bool add>
  __attribute__((always_inline)) inline void apply(const Path& p, const T* m, const T* a, const T* w,
                                                   std::int64_t w_step, T* out, std::int64_t out_step) const {
    const std::int32_t* end = &t_.pointers[p.by_k];
    const Nonzero* nonzero = &t_.nonzeros[p.nonzero];
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
    const Nonzero* nonzero = &t_.nonzeros[p.nonzero];
    const std::int64_t step = p.da * kLanes<T>, g_row = g_step * kLanes<T>;
    Vector<T> weight[N], sum_w[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      sum_w[n] = Vector<T>{};
      if constexpr (kind != Weights::none) weight[n] = weight_at<kind>(w, n * w_step);
    }
    if (pull_a || pull_w) {
      const std::int32_t *end = &t_.pointers[p.by_i], *order = &t_.order[p.nonzero];
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
    for (const Group* group = &t_.groups[p.group]; group < t_.groups.begin() + p.group + p.n_groups; ++group) {
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
      for (const Group* group = &t_.groups[p.group]; group < t_.groups.begin() + p.group + p.n_groups; ++group) {
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
        for (const Group* group = &t_.groups[p.group]; group < t_.groups.begin() + p.group + p.n_groups; ++group) {
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
        if (wants_w)
          pull_weights<kind>(p, s.q, s.z.get(), s.size_z, g, s.size_g, s.n_tiles,
                             kind == Weights::shared ? s.total + p.weight : pull_w);
      }
    });
  }
};

template <typename T>
void forward(const Array<std::int32_t>& tables, const Array<T>& coefficients, const Array<T>& x, const Array<T>& y,
             const Array<T>& weight, const Index& pick, const Index& edge, const Index& into, Array<T>& result) {
  Plan<T>(tables, coefficients).forward({x, y, weight, pick, edge, into, result}, out(result));
}

template <typename T>
void backward(const Array<std::int32_t>& tables, const Array<T>& coefficients, const Array<T>& grad, const Array<T>& x,
              const Array<T>& y, const Array<T>& weight, const Index& pick, const Index& edge, const Index& into,
              bool wants_x, bool wants_y, bool wants_weight, Array<T>& grad_x, Array<T>& grad_y,
              Array<T>& grad_weight) {
  const auto wanted = [](bool wants, Array<T>& gradient) { return wants ? out(gradient) : nullptr; };
  const Gradients<T> to{wanted(wants_x, grad_x), wanted(wants_y, grad_y), wanted(wants_weight, grad_weight)};
  Plan<T>(tables, coefficients).backward({x, y, weight, pick, edge, into, grad}, in(grad), to);
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

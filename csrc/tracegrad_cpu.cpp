// TraceGrad's update in one sweep forward and one back: the kernel of nextham_kernels/ops/tracegrad, whose page
// closed_form.py holds the formulas.
//
// Parallel over tiles of edges, whose lanes they become: up to kPanels panels [numbers][lane], 32 lanes each in float32
// with AVX-512. A panel is what a packed matrix consists of, so every product is weights times tile, nothing is
// transposed between gram and step, the 980 Gram numbers and all activations (1 MB of a tile) never leave the
// second-level cache, and sums over channels need no sums over lanes. NextHAM: 0.76 million multiply-adds per edge, 1.6
// kB read and written; the weights, 2.5 MB, come from the third-level cache once per tile, which is why it has panels.
#include <omp.h>

#include <vector>

#include "module.h"
#include "rows.h"
#include "tracegrad.h"

namespace NEXTHAM_ISA {
namespace {

constexpr std::int64_t kPanels = 4;

// layers: the four tensors of each, one after the other. kept: empty, or arrays [n, c_j] for h_0 … h_k−1 and then for
// v_0 … v_k−2 (the last v is constant). z: empty, or [n, c].
template <typename T>
void update(const Array<T>& x_, const Array<T>& forms_, const Array<T>& bias_, const Array<T>& last_,
            const std::vector<Array<T>>& layers, const Array<std::int32_t>& blocks, const Array<std::int32_t>& places,
            T eps, T residual, Array<T>& y_, Array<T>& scale_, std::vector<Array<T>> kept_, Array<T>& z_) {
  const GramLayout layout(blocks, places);
  const std::int64_t n_pairs = layout.pairs(), c = bias_.shape(0), n = x_.shape(0), n_threads = omp_get_max_threads();
  const bool wanted = z_.size() > 0;
  std::vector<Packing<T>> packings;
  packings.reserve(2 + layers.size() / 2);
  const auto packed = [&](const T* matrix, std::int64_t row, std::int64_t column, std::int64_t rows, std::int64_t k) {
    packings.emplace_back(Strided<T>{matrix, row, column}, rows, k);
    return packings.back().weights();
  };
  TraceGrad<T> q{layout,
                 n_pairs,
                 x_.shape(1),
                 {packed(in(forms_), 1, c, c, n_pairs), in(bias_), {}, eps},
                 packed(in(forms_), c, 1, n_pairs, c),
                 in(last_),
                 residual};
  std::int64_t widest = std::max(q.d, c);
  for (std::size_t i = 0; i < layers.size(); i += 4) {
    const std::int64_t n_out = layers[i + 2].shape(0), n_in = layers[i + 2].shape(1);
    const T* matrix = in(layers[i + 2]);
    const bool end = i + 4 == layers.size();  // its product is read for z alone, and never transposed
    q.mlp.layers.push_back({in(layers[i]), in(layers[i + 1]),
                            end && !wanted ? Weights<T>{nullptr, n_out, n_in} : packed(matrix, n_in, 1, n_out, n_in),
                            in(layers[i + 3]),
                            end ? Weights<T>{nullptr, n_in, n_out} : packed(matrix, 1, n_in, n_in, n_out)});
    widest = std::max({widest, n_in, n_out});
  }
  const std::int64_t n_panels = (n + kWidth<T> - 1) / kWidth<T>;
  const std::int64_t rounds = (n_panels + kPanels * n_threads - 1) / (kPanels * n_threads);
  const std::int64_t size = (n_panels + rounds * n_threads - 1) / std::max<std::int64_t>(1, rounds * n_threads);
  const std::size_t k = q.mlp.layers.size();
  const T* x = in(x_);
  T *y = out(y_), *scale = out(scale_), *z = wanted ? out(z_) : nullptr;
  std::vector<T*> kept;
  for (auto& array : kept_) kept.push_back(out(array));
#pragma omp parallel if (n_panels > 1)
  {
#pragma omp for schedule(dynamic)
    for (std::size_t i = 0; i < packings.size(); ++i) packings[i].run();
    TraceGradWork<T> work(q, size);
    const auto zeros = buffer<T>(widest), nowhere = buffer<T>(widest);
    std::fill_n(zeros.get(), widest, T(0));
#pragma omp for schedule(static)
    for (std::int64_t start = 0; start < n_panels; start += size) {
      const std::int64_t first = start * kWidth<T>, there = std::min(size * kWidth<T>, n - first);
      work.n_lanes = whole_vectors<T>(there);
      const auto write = [&](const Tiles<T>& from, T* to) {
        each_panel<T>(work.n_lanes, [&](std::int64_t p, std::int64_t) {
          write_tile<T>(from.panel(p), first + p * kWidth<T>, {to, from.d, n, nowhere.get()});
        });
      };
      each_panel<T>(work.n_lanes, [&](std::int64_t p, std::int64_t) {
        read_tile<T>({x, q.d, n, zeros.get()}, first + p * kWidth<T>, work.x.panel(p));
      });
      work.forward(wanted || k == 0 ? k + 1 : k);
      if (wanted) write(work.mlp.h[k], z);
      for (std::size_t j = 0; !kept.empty() && j < k; ++j) write(work.mlp.h[j], kept[j]);
      work.back([&](std::size_t j, const Tiles<T>& v) {
        if (!kept.empty() && j + 1 < k) write(v, kept[k + j]);
      });
      alignas(kVectorBytes) T s[kPanels * kWidth<T>];
      work.step(s);
      write(work.y, y);
      std::copy_n(s, there, scale + first);
    }
  }
}

template <typename T>
void bind(Module& m) {
  m.def("tracegrad_update", &update<T>);
}

}  // namespace

void bind_tracegrad(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA

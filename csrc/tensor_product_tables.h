// The tables of a tensor product as its kernel reads them; nextham_kernels/ops/tensor_product/plan.py makes them and
// says what they mean.
#pragma once

#include <algorithm>
#include <cstdint>

#include "rows.h"

namespace NEXTHAM_ISA {

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

// A part of the tables, read where it lies.
template <typename S>
class Table {
 public:
  Table() = default;
  Table(const std::int32_t* numbers, std::int64_t n_numbers)
      : data_(reinterpret_cast<const S*>(numbers)), size_(n_numbers * sizeof(std::int32_t) / sizeof(S)) {}
  const S* begin() const { return data_; }
  const S* end() const { return data_ + size_; }
  const S& operator[](std::int64_t i) const { return data_[i]; }

 private:
  const S* data_ = nullptr;
  std::int64_t size_ = 0;
};

template <typename T>
struct Tables {
  Table<Path> paths;
  Table<Group> groups;
  Table<Nonzero> nonzeros;
  Table<std::int32_t> entries, pointers, order;
  Table<Chunk> chunks;
  const T* coefficients;  // of the entries
  // The largest of all paths or chunks, and the number of shared weights that no path mixes with.
  std::int32_t most_nonzeros = 0, most_weights = 0, most_da = 0, most_chunk = 0, n_own = 0;
  bool mixes = false;

  // The tables but the coefficients one behind the other, and their seven lengths before them.
  Tables(const Array<std::int32_t>& all, const Array<T>& coefficients_) : coefficients(in(coefficients_)) {
    const std::int32_t *length = in(all), *next = length + 7;
    const auto take = [&](auto& table) {
      table = {next, *length};
      next += *length++;
    };
    take(paths), take(groups), take(nonzeros), take(entries), take(pointers), take(order), take(chunks);
    for (const Path& p : paths) {
      most_nonzeros = std::max(most_nonzeros, p.n_nonzeros);
      most_weights = std::max(most_weights, p.n_weights);
      most_da = std::max(most_da, p.da);
      mixes |= p.n_w > 0;
      n_own += p.n_w ? 0 : p.n_weights;
    }
    for (const Chunk& c : chunks) most_chunk = std::max(most_chunk, c.d);
  }
};

}  // namespace NEXTHAM_ISA

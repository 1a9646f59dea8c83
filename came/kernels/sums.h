// Passes 1 and 2: sums over the rows and the columns of boxes.
#pragma once

#include <array>
#include <memory>

#include "momentum.h"

namespace {

constexpr int64_t STRIP = 4096;  // numbers of columns' sums that stay in the fastest cache
constexpr int64_t FLUSH = 256;   // rows that are added up before they join a long sum
// Numbers from one channel to the next, so that none is written where another is just read but for
// a multiple of 4096 bytes: processors take that for the same place, and wait.
constexpr int64_t SPACING = STRIP / 4 + 336;

// The rows `[begin, end)` of a box, all in one matrix of its batch.
struct Run {
  const Matrix& matrix;
  const Box& box;
  int64_t begin, end;
};

// What is added up of the numbers of a row: in pass 1 `g^2`.
template <class G> struct Squares {
  static constexpr int CHANNELS = 1;
  static constexpr bool BACKWARD = false;
  const G* grad;
  Squares(const Place& place, const Factors&, float) : grad(place.at<G>(address::grad)) {}
  void fetch(int64_t j) const { ::fetch(grad + j); }
  std::array<Lanes, 1> operator()(int64_t j, int64_t n) const {
    const Lanes g = load(grad + j, n);
    return {g * g};
  }
  static int64_t border(const Box& box, int64_t) { return box.cols; }
};

// In pass 2 `d^2`, `d u` and `u^2`.  It begins with the rows that pass 1 has left in the cache, and
// leaves there those that pass 3 begins with.
template <class G, class M> struct Residuals {
  static constexpr int CHANNELS = 3;
  static constexpr bool BACKWARD = true;
  const G* grad;
  const M momentum;
  const float* col_scale;
  const float row_scale, clip;
  Residuals(const Place& place, const Factors& scales, float clip)
      : grad(place.at<G>(address::grad)), momentum(place), col_scale(scales.cols + place.col),
        row_scale(scales.rows[place.row]), clip(clip) {}
  void fetch(int64_t j) const {
    ::fetch(grad + j);
    momentum.fetch(j);
  }
  std::array<Lanes, 3> operator()(int64_t j, int64_t n) const {
    const Lanes u = load(grad + j, n) * row_scale * load(col_scale + j, n);
    const Lanes d = clip * u - momentum.load(j, n);
    return {d * d, d * u, u * u};
  }
  static int64_t border(const Box& box, int64_t col) { return M::border(box, col); }
};

// Adds up the columns `[left, right)` of a few rows.
template <class P>
void add_block(const Run& run, const Factors& scales, float clip, int64_t left, int64_t right,
               const Factors& sums) {
  constexpr int C = P::CHANNELS;
  constexpr int64_t CHANNEL = C == 1 ? STRIP + LANES : SPACING;
  alignas(64) float block[C * CHANNEL];
  for (int c = 0; c < C; ++c) std::fill_n(block + c * CHANNEL, right - left + LANES, 0.0f);
  // In a strip of columns the next row of it comes next, and it is no longer than this.
  const int64_t ahead = C > 1 && right - left < run.box.cols ? run.box.cols : AHEAD;
  for (int64_t row = run.begin; row < run.end; ++row) {
    Lanes by_row[C] = {};
    for (int64_t col = left, next; col < right; col = next) {
      next = std::min(right, P::border(run.box, col));
      const P products({run.matrix, run.box, row, col}, scales, clip);
      each_vector(next - col, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        products.fetch(j + ahead);
        const auto product = products(j, n);
#pragma GCC unroll 3  // so that the sums of the row stay in registers
        for (int c = 0; c < C; ++c) {
          float* by_col = block + c * CHANNEL + col - left + j;
          by_row[c] += product[c];
          store(by_col, LANES, load(by_col, LANES) + product[c]);
        }
      });
    }
    for (int c = 0; c < C; ++c) sums.rows[c * sums.row_stride + row] += sum(by_row[c]);
  }
  for (int c = 0; c < C; ++c)
    for (int64_t j = left; j < right; ++j)
      sums.cols[c * sums.col_stride + j] += block[c * CHANNEL + j - left];
}

template <class P>
void add_run(const Run& run, const Factors& scales, float clip, const Factors& sums) {
  constexpr int64_t WIDTH = P::CHANNELS == 1 ? STRIP : STRIP / 4;
  const int64_t blocks = (run.end - run.begin + FLUSH - 1) / FLUSH;
  const int64_t strips = (run.box.cols + WIDTH - 1) / WIDTH;
  for (int64_t i = 0; i < strips * blocks; ++i) {
    const int64_t index = P::BACKWARD ? strips * blocks - 1 - i : i;
    const int64_t left = index / blocks * WIDTH, top = run.begin + index % blocks * FLUSH;
    const Run part{run.matrix, run.box, top, std::min(run.end, top + FLUSH)};
    add_block<P>(part, scales, clip, left, std::min(run.box.cols, left + WIDTH), sums);
  }
}

// A run in shares, each with sums of columns of its own.
template <class P>
void add_shares(const Run& run, int64_t shares, const Factors& scales, float clip,
                const Factors& sums) {
  if (shares == 1) return add_run<P>(run, scales, clip, sums);
  const int64_t cols = run.box.cols, size = P::CHANNELS * cols;
  const std::unique_ptr<float[]> partial(new float[shares * size]);
  each_share(run.end - run.begin, shares, 1, 0, [&](int64_t share, int64_t begin, int64_t end) {
    float* own = partial.get() + share * size;
    std::fill_n(own, size, 0.0f);
    const Run part{run.matrix, run.box, run.begin + begin, run.begin + end};
    add_run<P>(part, scales, clip, {sums.rows, own, sums.row_stride, cols});
  });
#pragma omp parallel for num_threads(shares) if (size * shares >= GRAIN)
  for (int64_t col = 0; col < cols; ++col)
    for (int c = 0; c < P::CHANNELS; ++c)
      for (int64_t share = 0; share < shares; ++share)
        sums.cols[c * sums.col_stride + col] += partial[share * size + c * cols + col];
}

// A box, one matrix of its batch after the other, or side by side where they are small.
template <class P>
void add_box(const Matrix& matrix, const Box& box, float* scales, float clip, float* sums,
             int64_t stride, int64_t threads) {
  const auto add = [&](int64_t batch, int64_t shares) {
    const int64_t first = batch * matrix.rows - box.first_row;
    const Run run{matrix, box, std::max<int64_t>(0, first), std::min(box.rows, first + matrix.rows)};
    const Place place{matrix, box, run.begin, 0};
    add_shares<P>(run, shares, place.factors(scales), clip, place.factors(sums, stride));
  };
  const int64_t begin = box.first_row / matrix.rows;
  const int64_t end = (box.first_row + box.rows - 1) / matrix.rows + 1;
  const int64_t rows = std::min(box.rows, matrix.rows);
  if (end - begin == 1 || rows * box.cols >= GRAIN) {
    const int64_t shares = rows * box.cols < GRAIN ? 1 : std::min(threads, rows);
    for (int64_t batch = begin; batch < end; ++batch) add(batch, shares);
  } else {
#pragma omp parallel for num_threads(threads) if (box.rows * box.cols >= GRAIN)
    for (int64_t batch = begin; batch < end; ++batch) add(batch, 1);
  }
}

}  // namespace

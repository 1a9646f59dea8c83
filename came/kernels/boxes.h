// The table of came/kernels/table.py, the formats of came/momentum.py, and who does which rows.
#pragma once

#include <algorithm>

#include "lanes.h"

namespace {

// The columns are handed over as macros, so that they always agree.
namespace box { enum : int64_t { BOX_COLUMNS, WIDTH }; }
namespace address { enum : int64_t { ADDRESS_COLUMNS, WIDTH }; }
namespace matrix { enum : int64_t { MATRIX_COLUMNS, WIDTH }; }
namespace statistic { enum : int64_t { STATISTIC_COLUMNS, WIDTH }; }
namespace option { enum : int64_t { OPTION_COLUMNS, WIDTH }; }
namespace dtype { enum : int64_t { DTYPE_CODES }; }
namespace format { enum : int64_t { FORMAT_CODES }; }

constexpr int64_t GRAIN = 1 << 15;  // numbers: fewer are not worth a second thread
constexpr int64_t BLOCK = 256;      // numbers that share an int8 scale, at most

struct Table {  // as in came/kernels/cpu.py; `matrix` and `statistic` of matrices alone
  const int64_t *box, *address, *box_at, *numel, *key;
  const float* option;
  const int64_t *matrix, *statistic;
  float* rms;
};

struct Matrix {  // one row of the table, and where it begins in buffers of factor space
  const int64_t *matrix, *statistic;
  const float* option;
  int64_t batch, rows, cols, row_at, col_at;
  Matrix(const Table& table, int64_t index, int64_t at)
      : matrix(table.matrix + index * matrix::WIDTH),
        statistic(table.statistic + index * statistic::WIDTH),
        option(table.option + index * option::WIDTH), batch(matrix[matrix::batch]),
        rows(matrix[matrix::rows]), cols(matrix[matrix::cols]),
        row_at(matrix[matrix::row_at] - at), col_at(matrix[matrix::col_at] - at) {}
  float* state(int64_t key) const { return reinterpret_cast<float*>(statistic[key]); }
  int64_t rows_per_block() const {
    int64_t block = 1;
    while (2 * block * cols <= BLOCK) block *= 2;
    return block;
  }
};

struct Box {
  const int64_t *box, *address;
  int64_t rows, cols, first_row, first_col;
  Box(const Table& table, int64_t index)
      : box(table.box + index * box::WIDTH), address(table.address + index * address::WIDTH),
        rows(box[box::rows]), cols(box[box::cols]), first_row(box[box::first_row]),
        first_col(box[box::first_col]) {}
  template <class T> T* at(int64_t key, int64_t index) const {
    return reinterpret_cast<T*>(address[key]) + index;
  }
};

// Fetches the next rows into the cache while others are worked on, in the order of their addresses:
// the hardware fetches ahead along one row, and not beyond a page.
template <class T> struct Ahead {
  const T* at;
  int64_t cols, width, left;  // of the whole rows, and of what is walked
  Ahead(const T* at, int64_t cols, int64_t width) : at(at), cols(cols), width(width), left(width) {}
  void step() {
#ifndef AL
#define AL 3
#endif
    __builtin_prefetch(at, 0, AL);
    at += LANES;
    left -= LANES;
    if (left <= 0) {
      at += cols - width + left;
      left = width;
    }
  }
};

// ---- Momentum: some numbers of a box from (row, col) on, in rows that share an int8 block.

struct Place {
  const Matrix& matrix;
  const Box& box;
  int64_t row, col;
  template <class T> T* grad() const { return box.at<T>(address::grad, row * box.cols + col); }
};

template <class T> struct Float {
  using Number = T;
  T* numbers;
  static T* numbers_at(const Place& place) {
    return place.box.at<T>(address::momentum, place.row * place.box.cols + place.col);
  }
  explicit Float(const Place& place) : numbers(numbers_at(place)) {}
  static int64_t border(const Box& box, int64_t) { return box.cols; }
  static int64_t rows_together(const Matrix&) { return 1; }
  Lanes load(int64_t j, int64_t n) const { return ::load(numbers + j, n); }
  void keep(int64_t j, int64_t n, Lanes values) { store(numbers + j, n, values); }
  void prefetch(int64_t j, int64_t d) const { __builtin_prefetch(reinterpret_cast<const char*>(numbers + j) + d); }
  void next_row(int64_t) {}
  void finish() {}
};

struct Int8 {
  using Number = int8_t;
  int8_t *codes;
  float *scale, old_scale, values[BLOCK + LANES];
  int64_t row = 0, size = 0;  // where the row begins, and how many numbers there are, in the block
  Bits largest{};             // magnitudes compare like their bits, and NaN is above all others
  explicit Int8(const Place& place) {
    const Box& box = place.box;
    const int64_t per_block = rows_together(place.matrix), first = box.first_col / BLOCK;
    const int64_t num_blocks = (box.first_col + box.cols - 1) / BLOCK - first + 1;
    const int64_t down = (box.first_row + place.row) / per_block - box.first_row / per_block;
    const int64_t across = (box.first_col + place.col) / BLOCK - first;
    codes = numbers_at(place);
    scale = box.at<float>(address::second, down * num_blocks + across);
    old_scale = *scale;
  }
  static int8_t* numbers_at(const Place& place) {
    return place.box.at<int8_t>(address::momentum, place.row * place.box.cols + place.col);
  }
  static int64_t border(const Box& box, int64_t col) {
    return std::min(box.cols, col + BLOCK - (box.first_col + col) % BLOCK);
  }
  static int64_t rows_together(const Matrix& matrix) { return matrix.rows_per_block(); }
  Lanes load(int64_t j, int64_t n) const {
    return __builtin_convertvector(read(codes + row + j, n), Lanes) * (1 / 127.0f) * old_scale;
  }
  void keep(int64_t j, int64_t n, Lanes lanes) {
    store(values + row + j, LANES, lanes);
    const Bits magnitude = as<Bits>(lanes) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
    size = row + j + n;
  }
  void prefetch(int64_t, int64_t) const {}
  void next_row(int64_t cols) { row += cols; }
  void finish() {
    uint32_t bits = 0;
    for (int i = 0; i < LANES; ++i) bits = std::max(bits, uint32_t(largest[i]));
    *scale = as<float>(bits);
    const float inverse = *scale > 0 ? 127 / *scale : 0;
    each_vector(size, [&](int64_t j, int64_t n) {
      Lanes code = ::load(values + j, n) * inverse;
      code = code > 127 ? Lanes{} + 127 : code < -127 ? Lanes{} - 127 : code == code ? code : Lanes{};
      // Behind the point of 3 * 2^22 there is no place: the sum rounds to nearest even.
      const auto rounded = as<VectorOf<int32_t>::type>(code + 12582912.0f);
      write(codes + j, n, __builtin_convertvector(rounded, VectorOf<int8_t>::type));
    });
  }
};

struct Sign {
  using Number = uint8_t;
  static uint8_t* numbers_at(const Place& place) { return place.box.at<uint8_t>(address::momentum, 0); }
  uint8_t* bits;
  float row;
  const float* cols;
  explicit Sign(const Place& place) {
    const Box& box = place.box;
    const int64_t global_row = box.first_row + place.row;
    const int64_t first_col = global_row / place.matrix.rows * place.matrix.cols + box.first_col;
    bits = box.at<uint8_t>(address::momentum, place.row * ((box.cols + 7) / 8) + place.col / 8);
    row = place.matrix.state(statistic::momentum_row)[global_row];
    cols = place.matrix.state(statistic::momentum_col) + first_col + place.col;
  }
  static int64_t border(const Box& box, int64_t) { return box.cols; }
  static int64_t rows_together(const Matrix&) { return 1; }
  Lanes load(int64_t j, int64_t n) const {
    uint32_t word = 0;
    std::memcpy(&word, bits + j / 8, (std::min<int64_t>(n, LANES) + 7) / 8);
    const Bits negative = ((Bits{} + word) << (31 - lane_numbers())) & 0x80000000;
    return as<Lanes>(as<Bits>(row * ::load(cols + j, n)) ^ negative);
  }
  void keep(int64_t j, int64_t n, Lanes values) {
    const Bits set = as<Bits>(values < 0) & (1 << lane_numbers());
    uint32_t word = 0;
    for (int i = 0; i < LANES; ++i) word |= set[i];
    std::memcpy(bits + j / 8, &word, (n + 7) / 8);
  }
  void prefetch(int64_t, int64_t) const {}
  void next_row(int64_t) {}
  void finish() {}
};

// Calls `work` with a type: of the gradient, of the momentum.

template <class T> struct Type {
  using type = T;
};

template <class Work> void with_dtype(int64_t code, Work work) {
  code == dtype::bfloat16 ? work(Type<Bfloat16>()) : work(Type<float>());
}

template <class Work> void with_format(int64_t code, Work work) {
  switch (code) {
    case format::bfloat16: return work(Type<Float<Bfloat16>>());
    case format::int8: return work(Type<Int8>());
    case format::sign: return work(Type<Sign>());
    default: return work(Type<Float<float>>());
  }
}

// ---- Who does what

// Calls `work(owner, threads)`: small parameters side by side, large ones with all threads.
template <class Work>
void each_owner(const Table& table, int64_t first, int64_t last, int64_t threads, Work work) {
  const auto numbers = [&](int64_t owner) {
    int64_t found = 0;
    for (int64_t i = table.box_at[owner]; i < table.box_at[owner + 1]; ++i)
      found += table.box[i * box::WIDTH + box::rows] * table.box[i * box::WIDTH + box::cols];
    return found;
  };
  int64_t small = 0;
  for (int64_t owner = first; owner < last; ++owner)
    if (numbers(owner) < GRAIN) small += numbers(owner);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (small >= GRAIN)
  for (int64_t owner = first; owner < last; ++owner)
    if (numbers(owner) < GRAIN) work(owner, 1);
  for (int64_t owner = first; owner < last; ++owner)
    if (numbers(owner) >= GRAIN) work(owner, threads);
}

// Where share number `share` of so many begins; `step` numbers stay together, counted from `-before`.
inline int64_t share_begin(int64_t size, int64_t share, int64_t shares, int64_t step, int64_t before) {
  if (share == shares) return size;
  const int64_t at = (size + before) * share / shares / step * step - before;
  return std::max<int64_t>(0, at);
}

}  // namespace

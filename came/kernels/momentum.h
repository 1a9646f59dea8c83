// The formats of came/momentum.py: numbers of a box from a place on, loaded, changed and kept.
//
// `together` rows that share int8 blocks are kept at once, and `border` is where a block of columns
// ends; within them `keep` follows `load` row by row, and `finish` comes last.
#pragma once

#include "boxes.h"

namespace {

constexpr int64_t BLOCK = 256;  // numbers that share an int8 scale, at most

template <class T> struct Float {
  T* numbers;
  explicit Float(const Place& place) : numbers(place.at<T>(address::momentum)) {}
  static int64_t border(const Box& box, int64_t) { return box.cols; }
  static int64_t together(const Matrix&) { return 1; }
  void fetch(int64_t j) const { ::fetch(numbers + j); }
  Lanes load(int64_t j, int64_t n) const { return ::load(numbers + j, n); }
  void keep(int64_t j, int64_t n, Lanes values) { store(numbers + j, n, values); }
  void next_row(int64_t) {}
  void finish(int64_t) {}
};

struct Int8 {
  int8_t* codes;
  float *scale, old_scale;
  explicit Int8(const Place& place) : codes(place.at<int8_t>(address::momentum)) {
    const Box& box = place.box;
    const int64_t shift = rows_shift(place.matrix), first = box.first_col / BLOCK;
    const int64_t num_blocks = (box.first_col + box.cols - 1) / BLOCK - first + 1;
    const int64_t down = ((box.first_row + place.row) >> shift) - (box.first_row >> shift);
    const int64_t across = (box.first_col + place.col) / BLOCK - first;
    scale = box.at<float>(address::second, down * num_blocks + across);
    old_scale = *scale;
  }
  static int64_t border(const Box& box, int64_t col) {
    return std::min(box.cols, col + BLOCK - (box.first_col + col) % BLOCK);
  }
  static int64_t together(const Matrix& matrix) { return int64_t(1) << rows_shift(matrix); }
  void fetch(int64_t j) const { ::fetch(codes + row + j); }
  Lanes load(int64_t j, int64_t n) const {
    return widen(read(codes + row + j, n)) * (1 / 127.0f) * old_scale;
  }
  void keep(int64_t j, int64_t, Lanes lanes) { store(values + row + j, LANES, lanes); }
  void next_row(int64_t cols) { row += cols; }
  void finish(int64_t numbers) {
    Bits magnitudes{};  // they compare like their bits, and NaN is above all others
    each_vector(numbers, [&](int64_t j, int64_t n) {
      const Bits magnitude = as<Bits>(::load(values + j, n)) & 0x7fffffff;
      magnitudes = magnitude > magnitudes ? magnitude : magnitudes;
    });
    *scale = as<float>(largest(magnitudes));
    const float inverse = *scale > 0 ? 127 / *scale : 0;
    each_vector(numbers, [&](int64_t j, int64_t n) {
      Lanes code = ::load(values + j, n) * inverse;
      code = code > 127 ? Lanes{} + 127 : code < -127 ? Lanes{} - 127 : code;
      code = code == code ? code : Lanes{};
      // At 3 * 2^22 there are no places behind the point: the sum is rounded to nearest even.
      write(codes + j, n, narrow(as<Bits>(code + 12582912.0f)));
    });
  }

 private:
  int64_t row = 0;  // of the block, where it begins
  alignas(64) float values[BLOCK + LANES];
  static int64_t rows_shift(const Matrix& matrix) {
    int64_t shift = 0;
    while (matrix.cols << (shift + 1) <= BLOCK) ++shift;
    return shift;
  }
};

struct Sign {
  uint8_t* bits;
  float row;
  const float* cols;
  explicit Sign(const Place& place) {
    const Box& box = place.box;
    const int64_t global_row = box.first_row + place.row;
    const int64_t first_col = place.batch() * place.matrix.cols + box.first_col;
    const int64_t bytes = (box.cols + 7) / 8;
    bits = box.at<uint8_t>(address::momentum, place.row * bytes + place.col / 8);
    row = place.matrix.state(statistic::momentum_row)[global_row];
    cols = place.matrix.state(statistic::momentum_col) + first_col + place.col;
  }
  static int64_t border(const Box& box, int64_t) { return box.cols; }
  static int64_t together(const Matrix&) { return 1; }
  void fetch(int64_t) const {}  // too little
  Lanes load(int64_t j, int64_t n) const {
    uint32_t word = 0;
    std::memcpy(&word, bits + j / 8, (std::min<int64_t>(n, LANES) + 7) / 8);
    const Bits negative = (Bits{} + (word >> j % 8)) << (31 - lane_numbers()) & 0x80000000;
    return as<Lanes>(as<Bits>(row * ::load(cols + j, n)) ^ negative);
  }
  void keep(int64_t j, int64_t n, Lanes values) {
    uint32_t word = negative_bits(values) << j % 8;
    if (j % 8 > 0) word |= bits[j / 8];
    std::memcpy(bits + j / 8, &word, (n + 7) / 8);
  }
  void next_row(int64_t) {}
  void finish(int64_t) {}
};

// Calls `work` with a value of no meaning, of a type that names the format.
template <class M> struct Format {
  using type = M;
};
template <class Work> void with_format(int64_t code, const Work& work) {
  switch (code) {
    case format::bfloat16: return work(Format<Float<Bfloat16>>());
    case format::int8: return work(Format<Int8>());
    case format::sign: return work(Format<Sign>());
    default: return work(Format<Float<float>>());
  }
}

}  // namespace

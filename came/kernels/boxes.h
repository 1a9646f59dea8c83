// The table of came/kernels/table.py, and which thread works on what.
#pragma once

#include <algorithm>

#include "lanes.h"

namespace {

// The columns of the tables are handed over as macros, so that both sides always agree.
namespace box { enum : int64_t { BOX_COLUMNS, WIDTH }; }
namespace address { enum : int64_t { ADDRESS_COLUMNS, WIDTH }; }
namespace matrix { enum : int64_t { MATRIX_COLUMNS, WIDTH }; }
namespace statistic { enum : int64_t { STATISTIC_COLUMNS, WIDTH }; }
namespace option { enum : int64_t { OPTION_COLUMNS, WIDTH }; }
namespace dtype { enum : int64_t { DTYPE_CODES }; }
namespace format { enum : int64_t { FORMAT_CODES }; }

constexpr int64_t GRAIN = 1 << 15;  // numbers: fewer are not worth a second thread
constexpr int64_t PORTIONS = 8;     // for each thread: what is smaller is not shared out
constexpr int64_t AHEAD = 1024;     // numbers between what is fetched and what is worked on

struct Table {  // as in came/kernels/cpu.py; `matrix` and `statistic` of matrices alone
  const int64_t *box, *address, *box_at, *numel, *key;
  const float* option;
  const int64_t *matrix, *statistic;
  float* rms;
};

// What belongs to rows and to columns; channel `c` of sums lies `c * stride` behind the first.
struct Factors {
  float *rows, *cols;
  int64_t row_stride = 0, col_stride = 0;
};

// A row of the table, and where it begins in buffers of factor space.
struct Matrix {
  const int64_t* statistic;
  const float* option;
  int64_t batch, rows, cols, row_at, col_at;
  Matrix(const Table& table, int64_t index, int64_t at)
      : statistic(table.statistic + index * statistic::WIDTH),
        option(table.option + index * option::WIDTH) {
    const int64_t* row = table.matrix + index * matrix::WIDTH;
    batch = row[matrix::batch], rows = row[matrix::rows], cols = row[matrix::cols];
    row_at = row[matrix::row_at] - at, col_at = row[matrix::col_at] - at;
  }
  float* state(int64_t key) const { return reinterpret_cast<float*>(statistic[key]); }
};

struct Box {
  int64_t rows, cols, first_row, first_col, start, grad_dtype, param_dtype, format;
  const int64_t* address;
  Box(const Table& table, int64_t index) : address(table.address + index * address::WIDTH) {
    const int64_t* row = table.box + index * box::WIDTH;
    rows = row[box::rows], cols = row[box::cols], start = row[box::start];
    first_row = row[box::first_row], first_col = row[box::first_col];
    grad_dtype = row[box::grad_dtype], param_dtype = row[box::param_dtype];
    format = row[box::format];
  }
  template <class T> T* at(int64_t key, int64_t index) const {
    return reinterpret_cast<T*>(address[key]) + index;
  }
};

// The numbers of a box from (row, col) on.
struct Place {
  const Matrix& matrix;
  const Box& box;
  int64_t row, col;
  template <class T> T* at(int64_t key) const { return box.at<T>(key, row * box.cols + col); }
  int64_t batch() const { return matrix.batch == 1 ? 0 : (box.first_row + row) / matrix.rows; }
  // Of a buffer of factor space, what belongs to this box in the matrix that the row lies in.
  Factors factors(float* buffer, int64_t stride = 0) const {
    return {buffer + matrix.row_at + box.first_row,
            buffer + matrix.col_at + batch() * matrix.cols + box.first_col, stride, stride};
  }
};

// Fetch into the cache: the hardware does so ahead by itself, but only to the end of a page.  LAST:
// it is read for the last time in this step, and should leave room to others.
template <bool LAST = false> inline void fetch(const void* at) {
  __builtin_prefetch(at, 0, LAST ? 0 : 3);
}

// Calls `work` with a number of the type.
template <class Work> void with_dtype(int64_t code, const Work& work) {
  code == dtype::bfloat16 ? work(Bfloat16()) : work(float());
}

// Calls `work(owner, threads)`: side by side those that are small beside the whole work, so that no
// thread waits at the end; the others one after the other with all threads.  In this order, or
// BACKWARD, to begin with what the pass before has left in the cache.
template <bool BACKWARD = false, class Work>
void each_owner(const Table& table, int64_t first, int64_t last, int64_t threads,
                const Work& work) {
  const auto numbers = [&](int64_t owner) {
    int64_t found = 0;
    for (int64_t i = table.box_at[owner]; i < table.box_at[owner + 1]; ++i)
      found += table.box[i * box::WIDTH + box::rows] * table.box[i * box::WIDTH + box::cols];
    return found;
  };
  int64_t total = 0;
  for (int64_t owner = first; owner < last; ++owner) total += numbers(owner);
  const int64_t small = std::max(GRAIN, total / (threads * PORTIONS));
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (total >= GRAIN)
  for (int64_t i = first; i < last; ++i) {
    const int64_t owner = BACKWARD ? first + last - 1 - i : i;
    if (numbers(owner) < small) work(owner, 1);
  }
  for (int64_t i = first; i < last; ++i) {
    const int64_t owner = BACKWARD ? first + last - 1 - i : i;
    if (numbers(owner) >= small) work(owner, threads);
  }
}

// Calls `work(share, begin, end)` for equal shares of `size` things, one a thread.  `together` of
// them are not parted; the first is the last but `before` of those.
template <class Work>
void each_share(int64_t size, int64_t shares, int64_t together, int64_t before, const Work& work) {
  const auto begin = [&](int64_t share) {
    const int64_t at = (size + before) * share / shares / together * together - before;
    return share == shares ? size : std::max<int64_t>(0, at);
  };
#pragma omp parallel for schedule(static, 1) num_threads(shares) if (shares > 1)
  for (int64_t share = 0; share < shares; ++share) work(share, begin(share), begin(share + 1));
}

}  // namespace

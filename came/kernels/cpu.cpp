// The step over a table of boxes on a CPU: came/kernels/eager.py says what each function means.
//
// A box is walked once for each pass, a few rows at a time.  Large boxes are shared out to the
// threads by rows; every share adds up columns in a buffer of its own, and the buffers are added in
// the order of the shares.  So a result depends on the number of threads and on nothing else.

#include <array>
#include <memory>
#include <utility>

#include "boxes.h"

namespace {

#ifndef STR
#define STR 4096
#endif
constexpr int64_t STRIP = STR;  // columns whose sums stay in the fastest cache
#ifndef FL
#define FL 256
#endif
constexpr int64_t FLUSH = FL;   // rows that are added up before they join a long sum
#ifndef BACK
#define BACK true
#endif
#ifndef DIST
#define DIST 1
#endif
#ifndef TOG
#define TOG 4
#endif
#ifndef PAD
#define PAD 336
#endif
constexpr int TOGETHER = TOG;  // rows walked together, as far as registers reach

// What belongs to the rows of a box and to its columns; channel `c` of sums lies `c * stride` on.
struct Factors {
  float *rows, *cols;
  int64_t row_stride = 0, col_stride = 0;
};

// The rows `[begin, end)` of a box, all in one matrix of its batch.
struct Run {
  const Matrix& matrix;
  const Box& box;
  int64_t begin, end;
  Factors factors(float* buffer, int64_t stride = 0) const {
    const int64_t batch = (box.first_row + begin) / matrix.rows;
    return {buffer + matrix.row_at + box.first_row,
            buffer + matrix.col_at + batch * matrix.cols + box.first_col, stride, stride};
  }
};

// Pass 1: what is added up of the numbers of a row.
template <class G> struct Squares {
  static constexpr int CHANNELS = 1;
  static constexpr bool BACKWARD = false;
  const G* grad;
  Squares(const Place& at, const Factors&, float) : grad(at.grad<G>()) {}
  struct Streams {
    Ahead<G> grad;
    Streams(const Place& at, int64_t width) : grad(at.grad<G>(), at.box.cols, width) {}
    void step() { grad.step(); }
  };
  static int64_t border(const Box& box, int64_t) { return box.cols; }
  std::array<Lanes, 1> operator()(int64_t j, int64_t n) const {
    const Lanes g = load(grad + j, n);
    return {g * g};
  }
};

// Pass 2: `d^2`, `d u`, `u^2`.
template <class G, class M> struct Residuals {
  static constexpr int CHANNELS = 3;
  static constexpr bool BACKWARD = BACK;
  const G* grad;
  const M momentum;
  const float* col_scale;
  const float row_scale, clip;
  Residuals(const Place& at, const Factors& scales, float clip)
      : grad(at.grad<G>()), momentum(at), col_scale(scales.cols + at.col),
        row_scale(scales.rows[at.row]), clip(clip) {}
  struct Streams {
    Ahead<G> grad;
    Ahead<typename M::Number> momentum;
    Streams(const Place& at, int64_t width)
        : grad(at.grad<G>(), at.box.cols, width), momentum(M::numbers_at(at), at.box.cols, width) {}
    void step() {
      grad.step();
      momentum.step();
    }
  };
  static int64_t border(const Box& box, int64_t col) { return M::border(box, col); }
  std::array<Lanes, 3> operator()(int64_t j, int64_t n) const {
    const Lanes u = load(grad + j, n) * row_scale * load(col_scale + j, n);
    const Lanes d = clip * u - momentum.load(j, n);
    return {d * d, d * u, u * u};
  }
};

template <class P, size_t... R>
inline std::array<P, sizeof...(R)> rows_from(
    const Place& at, const Factors& scales, float clip, std::index_sequence<R...>) {
  return {P({at.matrix, at.box, at.row + int64_t(R), at.col}, scales, clip)...};
}

// Adds up `R` rows of the columns `[left, right)`; those of columns go to `block`.
template <class P, int R>
inline void add_rows(const Run& run, const Factors& scales, float clip, int64_t row, int64_t left,
                     int64_t right, float (*block)[STRIP + PAD], const Factors& sums) {
  constexpr int C = P::CHANNELS;
  Lanes by_row[R][C] = {};
  typename P::Streams ahead({run.matrix, run.box, row + R * DIST, left}, right - left);
  for (int64_t col = left, next; col < right; col = next) {
    next = std::min(right, P::border(run.box, col));
    const auto products =
        rows_from<P>({run.matrix, run.box, row, col}, scales, clip, std::make_index_sequence<R>());
    each_vector(next - col, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      Lanes by_col[C] = {};
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        ahead.step();
        const auto product = products[r](j, n);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
          by_row[r][c] += product[c];
          by_col[c] += product[c];
        }
      }
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        float* at = block[c] + col - left + j;
        store(at, LANES, load(at, LANES) + by_col[c]);
      }
    });
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums.rows[c * sums.row_stride + row + r] += sum(by_row[r][c]);
}

template <class P>
void add_block(const Run& run, const Factors& scales, float clip, int64_t left, int64_t right,
               const Factors& sums) {
  float block[P::CHANNELS][STRIP + PAD];
  for (auto& channel : block) std::fill_n(channel, right - left + LANES, 0.0f);
  const int64_t groups = (run.end - run.begin) / TOGETHER, rest = run.begin + groups * TOGETHER;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t row = run.begin + group * TOGETHER;
    add_rows<P, TOGETHER>(run, scales, clip, row, left, right, block, sums);
  }
  for (int64_t row = rest; row < run.end; ++row)
    add_rows<P, 1>(run, scales, clip, row, left, right, block, sums);
  for (int c = 0; c < P::CHANNELS; ++c)
    for (int64_t j = left; j < right; ++j) sums.cols[c * sums.col_stride + j] += block[c][j - left];
}

template <class P> void add_run(const Run& run, const Factors& scales, float clip, Factors sums) {
  const int64_t blocks = (run.end - run.begin + FLUSH - 1) / FLUSH;
  for (int64_t left = 0; left < run.box.cols; left += STRIP) {
    const int64_t right = std::min(run.box.cols, left + STRIP);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t top = run.begin + (P::BACKWARD ? blocks - 1 - i : i) * FLUSH;
      const Run part{run.matrix, run.box, top, std::min(run.end, top + FLUSH)};
      add_block<P>(part, scales, clip, left, right, sums);
    }
  }
}

// A run in shares, each with sums of columns of its own.
template <class P>
void add_shares(const Run& run, int64_t shares, const Factors& scales, float clip, Factors sums) {
  if (shares == 1) return add_run<P>(run, scales, clip, sums);
  const int64_t cols = run.box.cols, size = P::CHANNELS * cols, rows = run.end - run.begin;
  const std::unique_ptr<float[]> partial(new float[shares * size]);
#pragma omp parallel num_threads(shares)
  {
#pragma omp for schedule(static, 1)
    for (int64_t share = 0; share < shares; ++share) {
      float* own = partial.get() + share * size;
      std::fill_n(own, size, 0.0f);
      const Run part{run.matrix, run.box, run.begin + share_begin(rows, share, shares, 1, 0),
                     run.begin + share_begin(rows, share + 1, shares, 1, 0)};
      add_run<P>(part, scales, clip, {sums.rows, own, sums.row_stride, cols});
    }
#pragma omp for
    for (int64_t col = 0; col < cols; ++col)
      for (int c = 0; c < P::CHANNELS; ++c)
        for (int64_t share = 0; share < shares; ++share)
          sums.cols[c * sums.col_stride + col] += partial[share * size + c * cols + col];
  }
}

// A box, one matrix of its batch after the other, or side by side where they are small.
template <class P>
void add_box(const Matrix& matrix, const Box& box, float* scales, float clip, float* sums,
             int64_t stride, int64_t threads) {
  const auto add = [&](int64_t batch, int64_t shares) {
    const int64_t first = batch * matrix.rows - box.first_row;
    const Run run{matrix, box, std::max<int64_t>(0, first), std::min(box.rows, first + matrix.rows)};
    add_shares<P>(run, shares, run.factors(scales), clip, run.factors(sums, stride));
  };
  const int64_t begin = box.first_row / matrix.rows;
  const int64_t end = (box.first_row + box.rows - 1) / matrix.rows + 1;
  const int64_t rows = std::min(box.rows, matrix.rows);
  if (end - begin == 1 || rows * box.cols >= GRAIN) {
    for (int64_t batch = begin; batch < end; ++batch)
      add(batch, rows * box.cols < GRAIN ? 1 : std::min(threads, rows));
  } else {
#pragma omp parallel for num_threads(threads) if (box.rows * box.cols >= GRAIN)
    for (int64_t batch = begin; batch < end; ++batch) add(batch, 1);
  }
}

// Pass 3 over the rows `[begin, end)`, which hold whole int8 blocks.
template <class G, class P, class M>
void apply_rows(const Matrix& matrix, const Box& box, int64_t begin, int64_t end, float* scales,
                float* out, int64_t key) {
  const float* option = matrix.option;
  const float clip = *matrix.state(statistic::clip), beta1 = option[option::beta1];
  const float gain = option[option::one_minus_beta1], decay = option[option::lr_decay];
  const int64_t together = M::rows_together(matrix), first = box.box[box::start];
  for (int64_t top = begin, bottom; top < end; top = bottom) {
    bottom = std::min(end, top + together - (box.first_row + top) % together);
    for (int64_t left = 0, right; left < box.cols; left = right) {
      right = M::border(box, left);
      M momentum({matrix, box, top, left});
      for (int64_t row = top; row < bottom; ++row) {
        const Run run{matrix, box, row, row + 1};
        const Factors scale = run.factors(scales), step_scale = run.factors(out);
        const float row_scale = scale.rows[row] * clip;
        const float step = option[option::lr] * step_scale.rows[row];
        const int64_t index = row * box.cols + left;
        const G* grads = box.at<G>(address::grad, index);
        P* params = box.at<P>(address::param, index);
        each_vector(right - left, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
#ifdef PF3
          __builtin_prefetch(reinterpret_cast<const char*>(params + j) + PF3);
#endif
#ifdef PF3G
          __builtin_prefetch(reinterpret_cast<const char*>(grads + j) + PF3G);
          momentum.prefetch(j, PF3G);
#endif
          const Lanes u = load(grads + j, n) * row_scale * load(scale.cols + left + j, n);
          const Lanes m = beta1 * momentum.load(j, n) + gain * u;
          momentum.keep(j, n, m);
          Lanes p = load(params + j, n);
          p -= decay * p;
          p -= m * step * load(step_scale.cols + left + j, n);
          store(params + j, n, p, key, first + index + j);
        });
        momentum.next_row(box.cols);
      }
      momentum.finish();
    }
  }
}

template <class G, class P, class M>
void apply_box(const Matrix& matrix, const Box& box, float* scales, float* out, int64_t key,
               int64_t threads) {
  const int64_t together = M::rows_together(matrix), before = box.first_row % together;
  const int64_t shares = box.rows * box.cols < GRAIN ? 1 : threads;
#pragma omp parallel for schedule(static, 1) num_threads(shares) if (shares > 1)
  for (int64_t share = 0; share < shares; ++share)
    apply_rows<G, P, M>(matrix, box, share_begin(box.rows, share, shares, together, before),
                        share_begin(box.rows, share + 1, shares, together, before), scales, out, key);
}

// ---- The factors: whole matrices, each by one thread, alike on all ranks

// `1 / sqrt(v)` of the matrix `v = row col^T / mean(row)` is the product of these two.
void write_scales(const float* row, const float* col, int64_t rows, int64_t cols, float* row_scale,
                  float* col_scale) {
  const float mean = sum(row, rows) / rows;
#pragma omp simd
  for (int64_t i = 0; i < rows; ++i) row_scale[i] = 1 / std::sqrt(row[i] / mean);
#pragma omp simd
  for (int64_t i = 0; i < cols; ++i) col_scale[i] = 1 / std::sqrt(col[i]);
}

void update_squares_of(const Matrix& m, const float* squares, float* scales) {
  const float beta = m.option[option::beta2], gain = m.option[option::one_minus_beta2];
  const float eps = m.option[option::eps1];
  float *row = m.state(statistic::sq_row), *col = m.state(statistic::sq_col);
  for (int64_t i = 0; i < m.batch * m.rows; ++i)
    row[i] = row[i] * beta + gain * (squares[m.row_at + i] / m.cols + eps);
  for (int64_t i = 0; i < m.batch * m.cols; ++i)
    col[i] = col[i] * beta + gain * (squares[m.col_at + i] / m.rows + eps);
  for (int64_t b = 0; b < m.batch; ++b)
    write_scales(row + b * m.rows, col + b * m.cols, m.rows, m.cols,
                 scales + m.row_at + b * m.rows, scales + m.col_at + b * m.cols);
}
// Means of a kind of factor: `dd`, `du`, `uu` to the residual and, for signs, the new momentum.
void update_residuals_of(const Matrix& m, int64_t size, int64_t length, const float* residuals,
                         int64_t stride, float last, float clip, float* moving, float* magnitudes) {
  const float beta1 = m.option[option::beta1], gain1 = m.option[option::one_minus_beta1] * clip;
  const float beta3 = m.option[option::beta3], gain3 = m.option[option::one_minus_beta3];
  const float change = clip - last, eps = m.option[option::eps2];
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float dd = residuals[i] / length, du = residuals[stride + i] / length;
    const float uu = residuals[2 * stride + i] / length;
    const float square = dd + 2 * change * du + change * change * uu;
    const float residual = beta1 * beta1 * (square < 0 ? 0 : square) + eps;
    moving[i] = moving[i] * beta3 + gain3 * residual;
    if (magnitudes) {
      const float mu = last * uu - du, mm = dd + last * last * uu - 2 * last * du;
      const float next = beta1 * beta1 * mm + 2 * beta1 * gain1 * mu + gain1 * gain1 * uu;
      magnitudes[i] = next < 0 ? 0 : next;
    }
  }
}

inline float clip_factor(float rms, const float* option) {
  const float ratio = rms / option[option::clip_threshold];
  return 1 / (ratio < 1 ? 1 : ratio);  // NaN stays NaN
}

// Row and column magnitudes whose products have the row and column means of squares given.
void write_magnitudes(float* row, float* col, int64_t rows, int64_t cols) {
  const float mean = sum(row, rows) / rows, divisor = mean < 1e-30f ? 1e-30f : mean;
  for (int64_t i = 0; i < rows; ++i) row[i] = std::sqrt(row[i] / divisor);
  for (int64_t i = 0; i < cols; ++i) col[i] = std::sqrt(col[i]);
}

void update_confidence_of(const Matrix& m, const float* residuals, int64_t stride, float* out,
                          int64_t out_stride, float* rms) {
  float *row = m.state(statistic::res_row), *col = m.state(statistic::res_col);
  float* const clip = m.state(statistic::clip);
  float* const magnitudes = m.state(statistic::momentum_row) ? out + out_stride : nullptr;
  const int64_t rows = m.batch * m.rows, cols = m.batch * m.cols;
  *rms = std::sqrt(float(sum(residuals + 2 * stride + m.row_at, rows)) / (rows * m.cols));
  const float last = *clip;
  *clip = clip_factor(*rms, m.option);
  update_residuals_of(m, rows, m.cols, residuals + m.row_at, stride, last, *clip, row,
                      magnitudes ? magnitudes + m.row_at : nullptr);
  update_residuals_of(m, cols, m.rows, residuals + m.col_at, stride, last, *clip, col,
                      magnitudes ? magnitudes + m.col_at : nullptr);
  for (int64_t b = 0; b < m.batch; ++b) {
    const int64_t row_at = m.row_at + b * m.rows, col_at = m.col_at + b * m.cols;
    write_scales(row + b * m.rows, col + b * m.cols, m.rows, m.cols, out + row_at, out + col_at);
    if (magnitudes) write_magnitudes(magnitudes + row_at, magnitudes + col_at, m.rows, m.cols);
  }
}

// ---- Vectors: pieces of one row

template <class G>
double add_vector_run(const Box& box, const float* option, int64_t begin, int64_t end) {
  const float beta2 = option[option::beta2], gain = option[option::one_minus_beta2];
  const float eps = option[option::eps1];
  float squares[BLOCK + LANES];
  double total = 0;
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int64_t size = std::min(BLOCK, end - at);
    float* moment = box.at<float>(address::second, at);
    const G* grad = box.at<G>(address::grad, at);
    each_vector(size, [&](int64_t j, int64_t n) {
      const Lanes g = load(grad + j, n);
      const Lanes v = load(moment + j, n) * beta2 + gain * (g * g + eps), u = g * rsqrt(v);
      store(moment + j, n, v);
      store(squares + j, n, u * u);
    });
    total += sum(squares, size);
  }
  return total;
}

template <class G, class P>
void apply_vector_run(const Box& box, const float* option, float clip, int64_t key, int64_t begin,
                      int64_t end) {
  const float beta1 = option[option::beta1], gain = option[option::one_minus_beta1];
  const float lr = option[option::lr], decay = option[option::lr_decay];
  const G* grad = box.at<G>(address::grad, begin);
  P* param = box.at<P>(address::param, begin);
  float* moment = box.at<float>(address::second, begin);
  float* momentum = box.at<float>(address::momentum, begin);
  each_vector(end - begin, [&](int64_t j, int64_t n) {
    const Lanes u = load(grad + j, n) * rsqrt(load(moment + j, n)) * clip;
    const Lanes m = beta1 * load(momentum + j, n) + gain * u;
    store(momentum + j, n, m);
    Lanes p = load(param + j, n);
    p -= decay * p;
    p -= lr * m;
    store(param + j, n, p, key, box.box[box::start] + begin + j);
  });
}

template <class Work> void each_matrix(const Table& table, int64_t first, int64_t last, int64_t at,
                                       int64_t threads, Work work) {
  each_owner(table, first, last, threads, [&](int64_t index, int64_t shares) {
    const Matrix matrix(table, index, at);
    for (int64_t i = table.box_at[index]; i < table.box_at[index + 1]; ++i)
      work(matrix, Box(table, i), table.key[index], shares);
  });
}

}  // namespace

// Matrices `[first, last)`; number `i` of factor space lies at `[i - at]` of the buffers.
#define PART const Table *table, int64_t first, int64_t last, int64_t at, int64_t threads
#define VECTORS const Table *table, int64_t count, int64_t threads, float* sums

extern "C" {

void add_squares(PART, float* squares) {
  each_matrix(*table, first, last, at, threads, [&](auto& matrix, const Box& box, int64_t, int64_t shares) {
    with_dtype(box.box[box::grad_dtype], [&](auto grad) {
      add_box<Squares<typename decltype(grad)::type>>(matrix, box, squares, 0, squares, 0, shares);
    });
  });
}

void update_squares(PART, const float* squares, float* scales) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (last - first > 1)
  for (int64_t index = first; index < last; ++index)
    update_squares_of(Matrix(*table, index, at), squares, scales);
}

void add_residuals(PART, float* scales, float* residuals, int64_t stride) {
  each_matrix(*table, first, last, at, threads, [&](auto& matrix, const Box& box, int64_t, int64_t shares) {
    const float clip = *matrix.state(statistic::clip);
    with_dtype(box.box[box::grad_dtype], [&](auto grad) {
      with_format(box.box[box::format], [&](auto momentum) {
        add_box<Residuals<typename decltype(grad)::type, typename decltype(momentum)::type>>(
            matrix, box, scales, clip, residuals, stride, shares);
      });
    });
  });
}

void update_confidence(PART, const float* residuals, int64_t stride, float* out, int64_t out_stride) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (last - first > 1)
  for (int64_t index = first; index < last; ++index)
    update_confidence_of(Matrix(*table, index, at), residuals, stride, out, out_stride,
                         table->rms + index);
}

void apply_update(PART, float* scales, float* out, int64_t out_stride) {
  each_matrix(*table, first, last, at, threads, [&](auto& matrix, const Box& box, int64_t key, int64_t shares) {
    with_dtype(box.box[box::grad_dtype], [&](auto grad) {
      with_dtype(box.box[box::param_dtype], [&](auto param) {
        with_format(box.box[box::format], [&](auto momentum) {
          apply_box<typename decltype(grad)::type, typename decltype(param)::type,
                    typename decltype(momentum)::type>(matrix, box, scales, out, key, shares);
        });
      });
    });
  });
  for (int64_t index = first; index < last; ++index) {
    const Matrix m(*table, index, at);  // not before: the old signs needed the old magnitudes
    if (!m.state(statistic::momentum_row)) continue;
    std::copy_n(out + out_stride + m.row_at, m.batch * m.rows, m.state(statistic::momentum_row));
    std::copy_n(out + out_stride + m.col_at, m.batch * m.cols, m.state(statistic::momentum_col));
  }
}

void add_vector_squares(VECTORS) {
  each_owner(*table, 0, count, threads, [&](int64_t index, int64_t shares) {
    const float* option = table->option + index * option::WIDTH;
    const std::unique_ptr<double[]> partial(new double[shares]);
    for (int64_t i = table->box_at[index]; i < table->box_at[index + 1]; ++i) {
      const Box box(*table, i);
#pragma omp parallel for schedule(static, 1) num_threads(shares) if (shares > 1)
      for (int64_t share = 0; share < shares; ++share)
        with_dtype(box.box[box::grad_dtype], [&](auto grad) {
          partial[share] = add_vector_run<typename decltype(grad)::type>(
              box, option, share_begin(box.cols, share, shares, BLOCK, 0),
              share_begin(box.cols, share + 1, shares, BLOCK, 0));
        });
      double total = 0;
      for (int64_t share = 0; share < shares; ++share) total += partial[share];
      sums[index] += total;
    }
  });
}

void apply_vector_update(VECTORS) {
  each_owner(*table, 0, count, threads, [&](int64_t index, int64_t shares) {
    const float* option = table->option + index * option::WIDTH;
    const float rms = std::sqrt(sums[index] / table->numel[index]);
    const float clip = clip_factor(table->rms[index] = rms, option);
    for (int64_t i = table->box_at[index]; i < table->box_at[index + 1]; ++i) {
      const Box box(*table, i);
#pragma omp parallel for schedule(static, 1) num_threads(shares) if (shares > 1)
      for (int64_t share = 0; share < shares; ++share)
        with_dtype(box.box[box::grad_dtype], [&](auto grad) {
          with_dtype(box.box[box::param_dtype], [&](auto param) {
            apply_vector_run<typename decltype(grad)::type, typename decltype(param)::type>(
                box, option, clip, table->key[index], share_begin(box.cols, share, shares, BLOCK, 0),
                share_begin(box.cols, share + 1, shares, BLOCK, 0));
          });
        });
    }
  });
}

}  // extern "C"

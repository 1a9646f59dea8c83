// The step over a table of boxes on a CPU: came/kernels/eager.py says what each function means.
//
// A box is walked once for each pass, in the order of its addresses.  Large boxes are shared out to
// the threads by rows; every share adds up columns in a buffer of its own, and the buffers are added
// in the order of the shares.  So a result depends on the number of threads and on nothing else.

#include "factors.h"
#include "sums.h"

namespace {

// Pass 3 over the rows `[begin, end)`, which hold whole int8 blocks.
template <class G, class P, class M>
void apply_rows(const Matrix& matrix, const Box& box, int64_t begin, int64_t end, float* scales,
                float* out, int64_t key) {
  const float* option = matrix.option;
  const float clip = *matrix.state(statistic::clip), lr = option[option::lr];
  const float beta1 = option[option::beta1], gain = option[option::one_minus_beta1];
  const float decay = option[option::lr_decay];
  for (int64_t top = begin, bottom; top < end; top = bottom) {
    const int64_t together = M::together(matrix);
    bottom = std::min(end, top + together - (box.first_row + top) % together);
    for (int64_t left = 0, right; left < box.cols; left = right) {
      right = M::border(box, left);
      M momentum({matrix, box, top, left});
      for (int64_t row = top; row < bottom; ++row) {
        const Place place{matrix, box, row, left};
        const Factors scale = place.factors(scales), step_scale = place.factors(out);
        const float row_scale = scale.rows[row] * clip, row_step = lr * step_scale.rows[row];
        const float *cols = scale.cols + left, *step_cols = step_scale.cols + left;
        const G* grads = place.at<G>(address::grad);
        P* params = place.at<P>(address::param);
        const int64_t index = box.start + row * box.cols + left;
        each_vector(right - left, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
          fetch<true>(grads + j + AHEAD);
          fetch<true>(params + j + AHEAD);
          momentum.fetch(j + AHEAD);
          const Lanes u = load(grads + j, n) * row_scale * load(cols + j, n);
          const Lanes m = beta1 * momentum.load(j, n) + gain * u;
          momentum.keep(j, n, m);
          Lanes p = load(params + j, n);
          p -= decay * p;
          p -= m * row_step * load(step_cols + j, n);
          store(params + j, n, p, key, index + j);
        });
        momentum.next_row(box.cols);
      }
      momentum.finish((bottom - top) * (right - left));
    }
  }
}

// Updates the second moments of a piece of a vector; returns the sum of `u^2`, uncorrected.
template <class G>
double add_vector(const Box& box, const float* option, int64_t begin, int64_t end) {
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
      const Lanes v = beta2 * load(moment + j, n) + gain * (g * g + eps), u = g * rsqrt(v);
      store(moment + j, n, v);
      store(squares + j, LANES, u * u);
    });
    total += sum(squares, size);
  }
  return total;
}

// `scale` of an update: clip factor and bias correction.
template <class G, class P>
void apply_vector(const Box& box, const float* option, float scale, int64_t key, int64_t begin,
                  int64_t end) {
  const float beta1 = option[option::beta1], gain = option[option::one_minus_beta1];
  const float lr = option[option::lr], decay = option[option::lr_decay];
  const G* grad = box.at<G>(address::grad, begin);
  P* param = box.at<P>(address::param, begin);
  float* moment = box.at<float>(address::second, begin);
  float* momentum = box.at<float>(address::momentum, begin);
  each_vector(end - begin, [&](int64_t j, int64_t n) {
    const Lanes u = load(grad + j, n) * rsqrt(load(moment + j, n)) * scale;
    const Lanes m = beta1 * load(momentum + j, n) + gain * u;
    store(momentum + j, n, m);
    Lanes p = load(param + j, n);
    p -= decay * p;
    p -= lr * m;
    store(param + j, n, p, key, box.start + begin + j);
  });
}

// Calls `work(matrix, box, key of rounding, threads)`.
template <bool BACKWARD = false, class Work>
void each_box(const Table& table, int64_t first, int64_t last, int64_t at, int64_t threads,
              const Work& work) {
  each_owner<BACKWARD>(table, first, last, threads, [&](int64_t index, int64_t shares) {
    const Matrix matrix(table, index, at);
    for (int64_t i = table.box_at[index]; i < table.box_at[index + 1]; ++i)
      work(matrix, Box(table, i), table.key[index], shares);
  });
}

}  // namespace

// Matrices `[first, last)`; number `i` of factor space lies at `[i - at]` of the buffers.
#define PART const Table *table, int64_t first, int64_t last, int64_t at, int64_t threads

extern "C" {

void add_squares(PART, float* squares) {
  each_box(*table, first, last, at, threads, [&](auto& matrix, const Box& box, auto, auto shares) {
    with_dtype(box.grad_dtype, [&](auto grad) {
      add_box<Squares<decltype(grad)>>(matrix, box, squares, 0, squares, 0, shares);
    });
  });
}

void update_squares(PART, const float* squares, float* scales) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (last - first > 1)
  for (int64_t index = first; index < last; ++index)
    update_squares_of(Matrix(*table, index, at), is_here(*table, index), squares, scales);
}

void add_residuals(PART, float* scales, float* residuals, int64_t stride) {
  each_box<true>(*table, first, last, at, threads, [&](auto& matrix, const Box& box, auto,
                                                       auto shares) {
    const float clip = *matrix.state(statistic::clip);
    with_dtype(box.grad_dtype, [&](auto grad) {
      with_format(box.format, [&](auto format) {
        using Sums = Residuals<decltype(grad), typename decltype(format)::type>;
        add_box<Sums>(matrix, box, scales, clip, residuals, stride, shares);
      });
    });
  });
}

void update_confidence(PART, const float* residuals, int64_t stride, float* out,
                       int64_t out_stride) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (last - first > 1)
  for (int64_t index = first; index < last; ++index)
    update_confidence_of(Matrix(*table, index, at), is_here(*table, index), residuals, stride, out,
                         out_stride, table->rms + index);
}

void apply_update(PART, float* scales, float* out, int64_t out_stride) {
  each_box(*table, first, last, at, threads, [&](auto& matrix, const Box& box, auto key, auto shares) {
    with_dtype(box.grad_dtype, [&](auto grad) {
      with_dtype(box.param_dtype, [&](auto param) {
        with_format(box.format, [&](auto format) {
          using M = typename decltype(format)::type;
          const int64_t together = M::together(matrix), before = box.first_row % together;
          const int64_t wanted = box.rows * box.cols < GRAIN ? 1 : shares;
          each_share(box.rows, wanted, together, before, [&](auto, auto begin, auto end) {
            apply_rows<decltype(grad), decltype(param), M>(matrix, box, begin, end, scales, out,
                                                           key);
          });
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

// All passes over one part after the other, while it is in cache.  A part is four numbers: the first
// matrix, the one behind the last, and where its stretch of factor space begins and how long it is.
// `scratch` has rows of `stride` for sums (one of pass 1, three of pass 2) and scales (one, and two).
// What was summed goes to `squares` and `residuals`, of `size` numbers of factor space, if any.
void step_alone(const Table* table, const int64_t* parts, int64_t count, int64_t threads,
                float* scratch, int64_t stride, float* squares, float* residuals, int64_t size) {
  float *sums = scratch + stride, *scales = scratch + 4 * stride, *out = scratch + 5 * stride;
  for (const int64_t* part = parts; part < parts + 4 * count; part += 4) {
    const int64_t first = part[0], last = part[1], at = part[2], length = part[3];
    for (int64_t row = 0; row < 4; ++row) std::fill_n(scratch + row * stride, length, 0.0f);
    add_squares(table, first, last, at, threads, scratch);
    update_squares(table, first, last, at, threads, scratch, scales);
    add_residuals(table, first, last, at, threads, scales, sums, stride);
    update_confidence(table, first, last, at, threads, sums, stride, out, stride);
    apply_update(table, first, last, at, threads, scales, out, stride);
    if (size == 0) continue;
    std::copy_n(scratch, length, squares + at);
    for (int64_t row = 0; row < 3; ++row)
      std::copy_n(sums + row * stride, length, residuals + row * size + at);
  }
}

void add_vector_squares(const Table* table, int64_t count, int64_t threads, float* sums) {
  each_owner(*table, 0, count, threads, [&](int64_t index, int64_t shares) {
    const float* option = table->option + index * option::WIDTH;
    const std::unique_ptr<double[]> partial(new double[shares]);
    for (int64_t i = table->box_at[index]; i < table->box_at[index + 1]; ++i) {
      const Box box(*table, i);
      with_dtype(box.grad_dtype, [&](auto grad) {
        each_share(box.cols, shares, BLOCK, 0, [&](auto share, auto begin, auto end) {
          partial[share] = add_vector<decltype(grad)>(box, option, begin, end);
        });
      });
      double total = 0;
      for (int64_t share = 0; share < shares; ++share) total += partial[share];
      sums[index] += total;
    }
  });
}

void apply_vector_update(const Table* table, int64_t count, int64_t threads, const float* sums) {
  each_owner(*table, 0, count, threads, [&](int64_t index, int64_t shares) {
    const float* option = table->option + index * option::WIDTH;
    const float correction = option[option::sq_correction];
    const float rms = std::sqrt(sums[index] / table->numel[index]) * correction;
    const float scale = clip_factor(table->rms[index] = rms, option) * correction;
    for (int64_t i = table->box_at[index]; i < table->box_at[index + 1]; ++i) {
      const Box box(*table, i);
      with_dtype(box.grad_dtype, [&](auto grad) {
        with_dtype(box.param_dtype, [&](auto param) {
          each_share(box.cols, shares, BLOCK, 0, [&](auto, auto begin, auto end) {
            apply_vector<decltype(grad), decltype(param)>(box, option, scale, table->key[index],
                                                          begin, end);
          });
        });
      });
    }
  });
}

}  // extern "C"

// From sums to factors: one thread for a whole matrix, in an order that is the same on all ranks.
#pragma once

#include "boxes.h"

namespace {

constexpr float TINY = 1e-30f;  // in place of a mean of nothing but zeros

inline float clip_factor(float rms, const float* option) {
  const float ratio = rms / option[option::clip_threshold];
  return 1 / (ratio < 1 ? 1 : ratio);  // NaN stays NaN
}

// `1 / sqrt(v)` of the matrix `v = row col^T / mean(row)`, bias corrected, is the product of these
// two.
void write_scales(const float* row, const float* col, int64_t rows, int64_t cols, float correction,
                  float* row_scale, float* col_scale) {
  // Not of a quotient, which is 0 for a row without gradient among large ones.
  const float root = std::sqrt(sum(row, rows) / rows) * correction;
#pragma omp simd
  for (int64_t i = 0; i < rows; ++i) row_scale[i] = root / std::sqrt(row[i]);
#pragma omp simd
  for (int64_t i = 0; i < cols; ++i) col_scale[i] = 1 / std::sqrt(col[i]);
}

// Row and column magnitudes whose products have the row and column means of squares given.
void write_magnitudes(float* row, float* col, int64_t rows, int64_t cols) {
  const float mean = sum(row, rows) / rows, divisor = mean < TINY ? TINY : mean;
#pragma omp simd
  for (int64_t i = 0; i < rows; ++i) row[i] = std::sqrt(row[i] / divisor);
#pragma omp simd
  for (int64_t i = 0; i < cols; ++i) col[i] = std::sqrt(col[i]);
}

// Moves a factor on by the means of `g^2 + eps1`, each of `length` numbers.
void average_squares(const float* option, const float* sums, int64_t size, int64_t length,
                     float* factor) {
  const float beta2 = option[option::beta2], gain = option[option::one_minus_beta2];
  const float eps = option[option::eps1];
#pragma omp simd
  for (int64_t i = 0; i < size; ++i)
    factor[i] = beta2 * factor[i] + gain * (sums[i] / length + eps);
}

// Whether this rank holds numbers of a matrix.  If not, it only follows with its copy of the factors.
inline bool is_here(const Table& table, int64_t index) {
  return table.box_at[index] < table.box_at[index + 1];
}

void update_squares_of(const Matrix& m, bool here, const float* squares, float* scales) {
  float *row = m.state(statistic::sq_row), *col = m.state(statistic::sq_col);
  average_squares(m.option, squares + m.row_at, m.batch * m.rows, m.cols, row);
  average_squares(m.option, squares + m.col_at, m.batch * m.cols, m.rows, col);
  for (int64_t b = 0; b < m.batch && here; ++b)
    write_scales(row + b * m.rows, col + b * m.cols, m.rows, m.cols,
                 m.option[option::sq_correction], scales + m.row_at + b * m.rows,
                 scales + m.col_at + b * m.cols);
}

// The same with the residual, from the sums of `d^2`, `d u` and `u^2`; for signs also the means of
// the squares of the new momentum.
void average_residuals(const float* option, const float* sums, int64_t stride, int64_t size,
                       int64_t length, float last, float clip, float* factor, float* squares) {
  const float beta1 = option[option::beta1], gain1 = option[option::one_minus_beta1] * clip;
  const float beta3 = option[option::beta3], gain3 = option[option::one_minus_beta3];
  const float change = clip - last, eps = option[option::eps2];
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float dd = sums[i] / length, du = sums[stride + i] / length;
    const float uu = sums[2 * stride + i] / length;
    const float square = dd + 2 * change * du + change * change * uu;
    const float residual = beta1 * beta1 * (square < 0 ? 0 : square) + eps;
    factor[i] = beta3 * factor[i] + gain3 * residual;
    if (squares) {  // m = z u - d
      const float mu = last * uu - du, mm = dd + last * last * uu - 2 * last * du;
      const float next = beta1 * beta1 * mm + 2 * beta1 * gain1 * mu + gain1 * gain1 * uu;
      squares[i] = next < 0 ? 0 : next;
    }
  }
}

void update_confidence_of(const Matrix& m, bool here, const float* residuals, int64_t stride,
                          float* out, int64_t out_stride, float* rms) {
  float *row = m.state(statistic::res_row), *col = m.state(statistic::res_col);
  float* const clip = m.state(statistic::clip);
  float* const magnitudes = m.state(statistic::momentum_row) ? out + out_stride : nullptr;
  const int64_t rows = m.batch * m.rows, cols = m.batch * m.cols;
  *rms = std::sqrt(float(sum(residuals + 2 * stride + m.row_at, rows)) / (rows * m.cols));
  const float last = *clip;
  *clip = clip_factor(*rms, m.option);
  average_residuals(m.option, residuals + m.row_at, stride, rows, m.cols, last, *clip, row,
                    magnitudes ? magnitudes + m.row_at : nullptr);
  average_residuals(m.option, residuals + m.col_at, stride, cols, m.rows, last, *clip, col,
                    magnitudes ? magnitudes + m.col_at : nullptr);
  for (int64_t b = 0; b < m.batch; ++b) {
    const int64_t row_at = m.row_at + b * m.rows, col_at = m.col_at + b * m.cols;
    if (here)
      write_scales(row + b * m.rows, col + b * m.cols, m.rows, m.cols,
                   m.option[option::res_correction], out + row_at, out + col_at);
    if (magnitudes) write_magnitudes(magnitudes + row_at, magnitudes + col_at, m.rows, m.cols);
  }
}

}  // namespace

// Vectors of a few numbers, as wide as the machine's registers, and how they round.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

template <class T> struct VectorOf {
  typedef T type __attribute__((vector_size(LANES * sizeof(T))));
  typedef T anywhere __attribute__((vector_size(LANES * sizeof(T)), aligned(1), may_alias));
};
using Lanes = VectorOf<float>::type;
using Bits = VectorOf<uint32_t>::type;
using Bytes = VectorOf<int8_t>::type;
struct Bfloat16 {
  uint16_t bits;
};

template <class To, class From> inline To as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// The first `n` lanes, if there are so many: the others are read as zero and not written.

template <class T> inline typename VectorOf<T>::type read(const T* from, int64_t n) {
  if (n >= LANES) return *reinterpret_cast<const typename VectorOf<T>::anywhere*>(from);
  typename VectorOf<T>::type lanes{};
  for (int64_t i = 0; i < n; ++i) lanes[i] = from[i];
  return lanes;
}

template <class T> inline void write(T* to, int64_t n, typename VectorOf<T>::type lanes) {
  if (n >= LANES)
    *reinterpret_cast<typename VectorOf<T>::anywhere*>(to) = lanes;
  else
    for (int64_t i = 0; i < n; ++i) to[i] = lanes[i];
}

#if defined(__AVX512BW__) && defined(__AVX512VL__)
// Narrow matrices are nothing but such ends of rows, and the loops above cost them half the time.
inline uint16_t first_lanes(int64_t n) { return n >= LANES ? 0xffff : (1u << n) - 1; }
template <> inline Lanes read(const float* from, int64_t n) {
  return as<Lanes>(_mm512_maskz_loadu_ps(first_lanes(n), from));
}
template <> inline void write(float* to, int64_t n, Lanes lanes) {
  _mm512_mask_storeu_ps(to, first_lanes(n), as<__m512>(lanes));
}
template <> inline VectorOf<uint16_t>::type read(const uint16_t* from, int64_t n) {
  return as<VectorOf<uint16_t>::type>(_mm256_maskz_loadu_epi16(first_lanes(n), from));
}
template <> inline void write(uint16_t* to, int64_t n, VectorOf<uint16_t>::type lanes) {
  _mm256_mask_storeu_epi16(to, first_lanes(n), as<__m256i>(lanes));
}
template <> inline Bytes read(const int8_t* from, int64_t n) {
  return as<Bytes>(_mm_maskz_loadu_epi8(first_lanes(n), from));
}
template <> inline void write(int8_t* to, int64_t n, Bytes lanes) {
  _mm_mask_storeu_epi8(to, first_lanes(n), as<__m128i>(lanes));
}
#endif

inline Lanes load(const float* from, int64_t n) { return read(from, n); }
inline Lanes load(const Bfloat16* from, int64_t n) {
  const auto upper = read(reinterpret_cast<const uint16_t*>(from), n);
  return as<Lanes>(__builtin_convertvector(upper, Bits) << 16);
}

inline Bits lane_numbers() {
  Bits numbers;
  for (int i = 0; i < LANES; ++i) numbers[i] = i;
  return numbers;
}

// To the upper half, to nearest even.
inline Bits round_to_nearest(Lanes values) {
  const Bits bits = as<Bits>(values), is_nan = as<Bits>(values != values);
  const Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return ((rounded & ~is_nan) | (0x7fc00000 & is_nan)) >> 16;
}

// To the upper half, up or down by the hash of came/kernels/rounding.py.
inline Bits round_stochastically(Lanes values, int64_t key, int64_t index) {
  Bits word = (lane_numbers() + uint32_t(index)) * 0x9E3779B9u + uint32_t(key);
  word = (word ^ (word >> 16)) * 0x7FEB352Du;
  word = (word ^ (word >> 15)) * 0x846CA68Bu;
  const Bits noise = (word ^ (word >> 16)) & 0xffff, bits = as<Bits>(values);
  const Bits is_finite = as<Bits>((bits & 0x7f800000) != 0x7f800000);
  return (bits + (noise & is_finite)) >> 16;
}

// `key` and `index` (of the first lane in its parameter) are for stochastic rounding.
inline void store(float* to, int64_t n, Lanes values, int64_t = -1, int64_t = 0) {
  write(to, n, values);
}
inline void store(Bfloat16* to, int64_t n, Lanes values, int64_t key = -1, int64_t index = 0) {
  const Bits upper = key < 0 ? round_to_nearest(values) : round_stochastically(values, key, index);
  write(reinterpret_cast<uint16_t*>(to), n,
        __builtin_convertvector(upper, VectorOf<uint16_t>::type));
}

// Through 16 bits, because compilers that meet one byte and four take the lanes apart.
inline Lanes widen(Bytes codes) {
  const auto words = __builtin_convertvector(codes, VectorOf<int16_t>::type);
  return __builtin_convertvector(__builtin_convertvector(words, VectorOf<int32_t>::type), Lanes);
}
inline Bytes narrow(Bits bits) {
  const auto words = __builtin_convertvector(as<VectorOf<int32_t>::type>(bits),
                                             VectorOf<int16_t>::type);
  return __builtin_convertvector(words, Bytes);
}

// One bit a lane, set where it is negative.
inline uint32_t negative_bits(Lanes values) {
  const Bytes set = narrow(as<Bits>(values < 0) & (1u << (lane_numbers() & 7)));
  uint64_t words[(LANES + 7) / 8] = {};
  std::memcpy(words, &set, LANES);
  uint32_t found = 0;
  for (int i = 0; i < (LANES + 7) / 8; ++i)  // the sum of eight bytes, as the top byte of a product
    found |= uint32_t(words[i] * 0x0101010101010101 >> 56) << 8 * i;
  return found;
}

inline Lanes rsqrt(Lanes x) {
  for (int i = 0; i < LANES; ++i) x[i] = 1 / std::sqrt(x[i]);
  return x;
}

// In halves: lane `i` and lane `i + LANES / 2` first.
inline float sum(Lanes lanes) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(as<__m512>(lanes));
#else
  float part[LANES];
  std::memcpy(part, &lanes, sizeof lanes);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
#endif
}

inline uint32_t largest(Bits bits) {
  uint32_t found = 0;
  for (int i = 0; i < LANES; ++i) found = bits[i] > found ? bits[i] : found;
  return found;
}

// The order is fixed by the code, whatever the address: ranks must agree to the bit.
inline double sum(const float* from, int64_t n) {
  VectorOf<double>::type total{};
  for (int64_t j = 0; j < n; j += LANES)
    total += __builtin_convertvector(load(from + j, n - j), VectorOf<double>::type);
  double whole = 0;
  for (int i = 0; i < LANES; ++i) whole += total[i];
  return whole;
}

// Calls `body(j, n)` for the vectors of a run of numbers; `n` is a constant but for the last.
template <class Body>
__attribute__((always_inline)) inline void each_vector(int64_t numbers, const Body& body) {
  int64_t j = 0;
  for (; j + LANES <= numbers; j += LANES) body(j, int64_t(LANES));
  if (j < numbers) body(j, numbers - j);
}

}  // namespace

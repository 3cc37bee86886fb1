// Products of small matrices whose sums stay in registers, for winograd.cpp.
//
// Half precision (of processors with AVX512-BF16): factors are pairs of bfloat16 along what is summed over, as the
// processor multiplies them; sums are float32.
#pragma once
#include <cstring>
#include <type_traits>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "vectors.h"

namespace {
constexpr int64_t ROWS = WIDE / 2, COLUMNS = 2;  // of the part of a product that is in registers: rows, vectors
typedef V Anywhere __attribute__((aligned(4), may_alias));
template <int VALUE> using Constant = std::integral_constant<int, VALUE>;

V load(const float* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
void save(float* p, V v) { std::memcpy(p, &v, sizeof v); }
void put(float* p, V v, bool, bool) { save(p, v); }
// A row of a product's right factor, volatile: loaded once and kept in a register, where the compiler would load it for
// every row of the left factor again (a quarter more time for the convolution).
V row_of(const float* b) { return *(const volatile Anywhere*)b; }
float entry_of(const float* a) { return *a; }
void add_product(V& sum, float a, V b) { sum += a * b; }

#if defined(__AVX512BF16__)
struct Pair {  // two bfloat16, the first one low
    uint32_t bits;
};
__m512i whole(const Pair* p) { return _mm512_loadu_si512(p); }
__m256i narrow(V v) { return (__m256i)_mm512_cvtneps_pbh((__m512)v); }
V load(const bf16* p) {
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
}
void save(bf16* p, V v) { _mm256_storeu_si256((__m256i*)p, narrow(v)); }
void put(Pair* p, V v, bool along_tiles, bool second) {
    if (!along_tiles) return save((bf16*)p, v);
    const __m512i half = _mm512_cvtepu16_epi32(narrow(v));
    _mm512_storeu_si512(p, second ? _mm512_or_si512(whole(p), _mm512_slli_epi32(half, 16)) : half);
}
__m512i row_of(const Pair* b) { return *(const volatile __m512i_u*)b; }
__m512i entry_of(const Pair* a) { return _mm512_set1_epi32(a->bits); }
void add_product(V& sum, __m512i a, __m512i b) {
    sum = (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#else
struct Pair {};
#endif
template <class F> constexpr int64_t TERMS = std::is_same_v<F, Pair> ? 2 : 1;  // of a sum in one factor

// m [rows, columns] (+)= a b, sums of n terms; a's entries lie `row` apart between rows and `term` between terms.
template <int VECTORS, class F>
void part(const F* a, int64_t row, int64_t term, const F* b, float* m, int64_t columns, int64_t n, bool add) {
    V sum[ROWS * VECTORS];
    const auto at = [=](int i) { return i / VECTORS * columns + i % VECTORS * WIDE; };
#pragma GCC unroll 16
    for (int i = 0; i < ROWS * VECTORS; i++) sum[i] = add ? load(m + at(i)) : V{};
    for (int64_t j = 0; j < n; j++) {
        decltype(row_of(b)) right[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) right[v] = row_of(b + j * columns + v * WIDE);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const auto left = entry_of(a + r * row + j * term);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) add_product(sum[r * VECTORS + v], left, right[v]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS * VECTORS; i++) save(m + at(i), sum[i]);
}
template <class F>
void product(const F* a, int64_t rows, int64_t row, int64_t term, const F* b, float* m, int64_t columns, int64_t n,
             bool add) {
    const auto panel = [&](auto vectors, int64_t c) {
        for (int64_t r = 0; r < rows; r += ROWS)
            part<vectors>(a + r * row, row, term, b + c, m + r * columns + c, columns, n, add);
    };
    int64_t c = 0;
    for (; c + COLUMNS * WIDE <= columns; c += COLUMNS * WIDE) panel(Constant<COLUMNS>{}, c);
    for (; c < columns; c += WIDE) panel(Constant<1>{}, c);
}
}  // namespace

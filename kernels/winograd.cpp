// 3x3 convolutions of images stored pixel by pixel, x [B, H, W, C], with 16 multiplications where the definition has 36
// (Winograd's minimal filtering F(2x2, 3x3): Lavin & Gray, CVPR 2016, sec. 4.1). For every tile of 2x2 pixels
//
//     y = A' [sum over c of (G g_c G') * (B' d_c B)] A       d: the 4x4 pixels of x around it, g: the 3x3 weights
//
//     B' = 1  0 -1  0      A' = 1  1  1  0
//          0  1  1  0           0  1 -1 -1
//          0 -1  1  0
//          0  1  0 -1
//
// with G = 1, 0, 0; .5, .5, .5; .5, -.5, .5; 0, 0, 1. A block of tiles at a time, which stays in the cache: B' d B,
// sixteen matrix products, A' m A. The derivative by G g G' is sixteen products over the tiles, of A dy A' with B' d B.
//
// Half precision (of processors with AVX512-BF16): factors are pairs of bfloat16 along what is summed over, as the
// processor multiplies them; sums are float32.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {
#if defined(__AVX512F__)
constexpr int64_t WIDE = 16, ROWS = 8;  // channels of a vector; rows of the part of a product that is in registers
#else
constexpr int64_t WIDE = 8, ROWS = 4;
#endif
constexpr int64_t COLUMNS = 2, BLOCK = 1 << 18;  // vectors of that part; bytes of a block's transformed tiles, about
typedef float V __attribute__((vector_size(4 * WIDE)));
typedef V Anywhere __attribute__((aligned(4), may_alias));
template <int VALUE> using Constant = std::integral_constant<int, VALUE>;

struct Task {  // as winograd.py's _Task
    int64_t batch, height, width, inside, outside, threads;
    int64_t across() const { return (width + 1) / 2; }
    int64_t down() const { return (height + 1) / 2; }
    int64_t tiles() const { return batch * down() * across(); }
};
struct Place {  // of a tile: sample, first row, first column
    int64_t b, top, left;
    Place(const Task& k, int64_t t)
        : b(t / (k.down() * k.across())), top(t / k.across() % k.down() * 2), left(t % k.across() * 2) {}
};

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
using bf16 = uint16_t;
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

// Of a line of four entries (stride S) B' d; of two entries A y; of four A' m.
template <int S> void spread_four(V* d) {
    const V a = d[0] - d[2 * S], b = d[S] + d[2 * S], c = d[2 * S] - d[S], e = d[S] - d[3 * S];
    d[0] = a, d[S] = b, d[2 * S] = c, d[3 * S] = e;
}
template <int S> void spread_two(V* d) {
    const V a = d[0], b = d[S];
    d[S] = a + b, d[2 * S] = a - b, d[3 * S] = -b;
}
template <int S> void spread_three(V* g) {  // G g
    const V a = 0.5f * (g[0] + g[2 * S]), b = 0.5f * g[S];
    g[3 * S] = g[2 * S], g[S] = a + b, g[2 * S] = a - b;
}
template <int S> void gather_three(V* d) {  // G' m
    const V a = 0.5f * (d[S] + d[2 * S]), b = 0.5f * (d[S] - d[2 * S]);
    d[0] += a, d[S] = b, d[2 * S] = a + d[3 * S];
}
template <int S> void gather(V* d) {
    const V a = d[0] + d[S] + d[2 * S], b = d[S] - d[2 * S] - d[3 * S];
    d[0] = a, d[S] = b;
}

// Tile t of x [B, H, W, channels], zero beyond the images, transformed: entry i to out + i plane.
// SIZE 4: the 4x4 pixels around it, B' d B; SIZE 2: its own pixels, A y A'. at: its place in the block.
template <int SIZE, bool ALONG_TILES, class X, class F>
void transform(const Task& k, const X* x, int64_t channels, int64_t t, int64_t at, int64_t plane, F* out) {
    static const std::vector<X> zeros(1 << 14);
    const int64_t tile_terms = ALONG_TILES ? TERMS<F> : 1, channel_terms = TERMS<F> / tile_terms;
    const Place place(k, t);
    const X* from[SIZE * SIZE];
    for (int i = 0; i < SIZE * SIZE; i++) {
        const int64_t row = place.top + i / SIZE - (SIZE == 4), column = place.left + i % SIZE - (SIZE == 4);
        const bool inside = t < k.tiles() && row >= 0 && row < k.height && column >= 0 && column < k.width;
        from[i] = inside ? x + ((place.b * k.height + row) * k.width + column) * channels : zeros.data();
    }
    out += at / tile_terms * (channels / channel_terms);
    for (int64_t c = 0; c < channels; c += WIDE) {
        V d[16];
#pragma GCC unroll 16
        for (int i = 0; i < SIZE * SIZE; i++) d[i / SIZE * 4 + i % SIZE] = load(from[i] + c);
#pragma GCC unroll 4
        for (int s = 0; s < SIZE; s++) SIZE == 4 ? spread_four<4>(d + s) : spread_two<4>(d + s);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) SIZE == 4 ? spread_four<1>(d + 4 * r) : spread_two<1>(d + 4 * r);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) put(out + i * plane + c / channel_terms, d[i], ALONG_TILES, at % 2);
    }
}

// u [16, rows, columns], or in pairs along rows: G g G' of kernels; w's strides by row, column, tap down, tap across.
template <class F>
void weights(const float* w, int64_t rows, int64_t columns, const int64_t* stride, F* u) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += WIDE) {
            V g[16];
            for (int tap = 0; tap < 9; tap++) {
                const float* from = w + r * stride[0] + c * stride[1] + tap / 3 * stride[2] + tap % 3 * stride[3];
                V& v = g[tap / 3 * 4 + tap % 3];
                if (stride[1] == 1) v = load(from);
                else for (int j = 0; j < WIDE; j++) v[j] = from[j * stride[1]];
            }
            for (int s = 0; s < 3; s++) spread_three<4>(g + s);
            for (int s = 0; s < 4; s++) spread_three<1>(g + 4 * s);
            for (int i = 0; i < 16; i++)
                put(u + (i * rows + r) / TERMS<F> * columns + c, g[i], true, r % 2);
        }
}

int64_t tiles_of_a_block(const Task& k) {
    const int64_t fit = BLOCK / (16 * 4 * std::max(k.inside, k.outside)), all = (k.tiles() + ROWS - 1) / ROWS * ROWS;
    return std::min(all, std::max<int64_t>(fit / ROWS * ROWS, 2 * ROWS));
}

// y = convolution + bias + rest; u: G g G', [16, C, K], or pairs [16, C / 2, K]. bias, rest: null for none.
template <class X, class F>
void forward(const Task& k, const X* x, const F* u, const float* bias, const X* rest, X* y) {
    const int64_t C = k.inside, K = k.outside, T = tiles_of_a_block(k), all = k.tiles();
    const int64_t terms = C / TERMS<F>, v_plane = T * terms + WIDE, m_plane = T * K + WIDE;
#pragma omp parallel for num_threads(k.threads) if (k.threads > 1)
    for (int64_t start = 0; start < all; start += T) {
        static thread_local std::vector<float> v_all, m_all;
        v_all.resize(std::max<size_t>(v_all.size(), 16 * v_plane));
        m_all.resize(std::max<size_t>(m_all.size(), 16 * m_plane));
        F* v = (F*)v_all.data();
        float* m = m_all.data();
        const int64_t count = std::min(T, all - start), padded = (count + ROWS - 1) / ROWS * ROWS;
        for (int64_t t = 0; t < padded; t++) transform<4, false>(k, x, C, start + t, t, v_plane, v);
        for (int64_t i = 0; i < 16; i++)
            product(v + i * v_plane, padded, terms, 1, u + i * terms * K, m + i * m_plane, K, terms, false);
        for (int64_t t = 0; t < count; t++) {
            const Place place(k, start + t);
            for (int64_t c = 0; c < K; c += WIDE) {
                V d[16];
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) d[i] = load(m + i * m_plane + t * K + c);
#pragma GCC unroll 4
                for (int s = 0; s < 4; s++) gather<4>(d + s);
                gather<1>(d), gather<1>(d + 4);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    const int64_t row = place.top + i / 2, column = place.left + i % 2;
                    if (row >= k.height || column >= k.width) continue;
                    const int64_t to = ((place.b * k.height + row) * k.width + column) * K + c;
                    V out = d[i / 2 * 4 + i % 2];
                    if (bias) out += load(bias + c);
                    if (rest) out += load(rest + to);
                    save(y + to, out);
                }
            }
        }
    }
}

// dw [K, 3, 3, C] by du [16, K, C], the derivative by G g G'; the same on any number of threads.
template <class X, class F>
void backward(const Task& k, const X* x, const X* dy, float* dw) {
    const int64_t C = k.inside, K = k.outside, T = tiles_of_a_block(k), all = k.tiles(), n = T / TERMS<F>;
    const int64_t v_plane = n * C + WIDE, e_plane = n * K + WIDE;
    static thread_local std::vector<float> v_all, e_all, du_all;
    v_all.resize(std::max<size_t>(v_all.size(), 16 * v_plane));
    e_all.resize(std::max<size_t>(e_all.size(), 16 * e_plane));
    du_all.resize(16 * K * C);
    F *v = (F*)v_all.data(), *e = (F*)e_all.data();
    float* du = du_all.data();
#pragma omp parallel num_threads(k.threads) if (k.threads > 1)
    {
        for (int64_t start = 0; start < all; start += T) {
#pragma omp for
            for (int64_t pair = 0; pair < T; pair += 2)
                for (int64_t t = pair; t < pair + 2; t++) {
                    transform<4, true>(k, x, C, start + t, t, v_plane, v);
                    transform<2, true>(k, dy, K, start + t, t, e_plane, e);
                }
#pragma omp for
            for (int64_t i = 0; i < 16; i++)
                product(e + i * e_plane, K, 1, K, v + i * v_plane, du + i * K * C, C, n, start > 0);
        }
#pragma omp for
        for (int64_t o = 0; o < K; o++)
            for (int64_t c = 0; c < C; c += WIDE) {
                V d[16];
                for (int i = 0; i < 16; i++) d[i] = load(du + (i * K + o) * C + c);
                for (int s = 0; s < 4; s++) gather_three<4>(d + s);
                for (int r = 0; r < 3; r++) gather_three<1>(d + 4 * r);
                for (int tap = 0; tap < 9; tap++) save(dw + (o * 9 + tap) * C + c, d[tap / 3 * 4 + tap % 3]);
            }
    }
}
}  // namespace
#define EACH(letter, X, F)                                                                                     \
    extern "C" void weights_##letter(const float* w, int64_t rows, int64_t columns, const int64_t* by, F* u) { \
        weights(w, rows, columns, by, u);                                                                      \
    }                                                                                                          \
    extern "C" void forward_##letter(const Task* k, const X* x, const F* u, const float* bias, const X* rest,  \
                                     X* y) {                                                                   \
        forward(*k, x, u, bias, rest, y);                                                                      \
    }                                                                                                          \
    extern "C" void backward_##letter(const Task* k, const X* x, const X* dy, float* dw) {                     \
        backward<X, F>(*k, x, dy, dw);                                                                         \
    }
EACH(f, float, float)
#if defined(__AVX512BF16__)
EACH(b, bf16, Pair)
#endif

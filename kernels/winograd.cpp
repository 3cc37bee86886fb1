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
#include <algorithm>
#include <vector>

#include "product.h"

namespace {
constexpr int64_t BLOCK = 1 << 18;  // bytes of a block's transformed tiles, about

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

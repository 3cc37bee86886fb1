// One sweep over a batch of images stored pixel by pixel, x [B, HW, C]: group normalisation, modulation, SiLU, dropout.
//
//     u = a x + t    with a = rstd weight scale,  t = (bias - mean rstd weight) scale + shift     [B, C]
//     y = keep(place) u sigmoid(u) / (1 - p)
//
// fused.py names the arguments and has the same mathematics in PyTorch. Without PyTorch's headers, to compile in
// seconds; by vectors of GCC and Clang: each block of channels goes down the pixels with all it needs in registers.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {
template <auto VALUE> using Constant = std::integral_constant<decltype(VALUE), VALUE>;
using Whole = Constant<WIDE>;
enum Kind { LINEAR, SILU, DROPPED };  // what follows the normalisation; DROPPED: SiLU and dropout
typedef int32_t I __attribute__((vector_size(4 * WIDE)));
typedef uint32_t U __attribute__((vector_size(4 * WIDE)));
typedef bf16 H __attribute__((vector_size(2 * WIDE)));
const U ORDER = [] { U order; for (uint32_t i = 0; i < WIDE; i++) order[i] = i; return order; }();

// Entries of a block to floats and back; of the last block of a row the first `count`, the others zero.
V widen(V v) { return v; }
V widen(H v) { return (V)(__builtin_convertvector(v, U) << 16); }
void narrow(V v, V& to) { to = v; }
void narrow(V v, H& to) {  // to the nearest, ties to even
    const U bits = (U)v;
    to = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, H);
}
template <class X> using Vector = std::conditional_t<std::is_same_v<X, float>, V, H>;
template <class X, class N> V load(const X* p, N count) {
    Vector<X> v{};
    std::memcpy(&v, p, count * sizeof(X));
    return widen(v);
}
template <class X, class N> void save(X* p, V value, N count) {
    Vector<X> v;
    narrow(value, v);
    std::memcpy(p, &v, count * sizeof(X));
}
// 1 / (1 + e^-u): 2^f by a polynomial for |f| <= 1/2 (error 1e-7), the whole part put into the exponent.
V sigmoid(V u) {
    V z = -1.44269504f * u;
    z = z > 126.f ? V{} + 126.f : z < -126.f ? V{} - 126.f : z;
    const V whole = (z + 12582912.f) - 12582912.f, f = z - whole;
    const V power = 1 + f * (.693147182f + f * (.240226462f + f * (.0555041f + f * (.00961812f +
                    f * (.00133336f + f * .000154f)))));
    return 1 / (1 + power * (V)((__builtin_convertvector(whole, I) + 127) << 23));
}
// Whether an entry stays: a hash (Wellons' lowbias32) of the seed, the row b HW + p and the channel c.
template <class T> T mix(T h) {
    h = (h ^ (h >> 16)) * 0x7feb352du;
    return (h ^ (h >> 15)) * 0x846ca68bu;
}

struct Task {  // as fused.py's _Task
    int64_t batch, pixels, channels, groups, row, threads;  // row: from one sample's scale to the next's
    const float *weight, *bias, *scale, *shift;             // [C], [C], [B, C], [B, C]; the last two null: none
    float *a, *t, *mean, *rstd;                             // [B, C]
    const int32_t* seed;                                    // null: no dropout
    float eps, factor;
    int32_t threshold, silu;

    void keys(int64_t b, std::vector<uint32_t>& out) const {  // a hash for each row of sample b
        out.resize(seed ? pixels : 0);
        for (int64_t p = 0; p < int64_t(out.size()); p++) out[p] = mix(uint32_t(*seed) ^ mix(uint32_t(b * pixels + p)));
    }
};

struct Dropout {  // of a block of channels from c on
    const int32_t threshold;
    const float factor;
    const U channel;
    Dropout(const Task& k, int64_t c)
        : threshold(k.threshold), factor(k.factor), channel((ORDER + uint32_t(c)) * 0x9e3779b9u) {}
    V operator()(V v, uint32_t row_key) const { return (I)mix(channel + row_key) >= threshold ? v * factor : V{}; }
};

// block(kind, c, count) for each block of channels from c on, kind and count known to the compiler: count is Whole, or
// what a row's last block holds.
template <class F>
void each_block(const Task& k, F block) {
    auto all = [&](auto kind) {
        int64_t c = 0;
        for (; c + WIDE <= k.channels; c += WIDE) block(kind, c, Whole{});
        if (c < k.channels) block(kind, c, k.channels - c);
    };
    k.seed ? all(Constant<DROPPED>{}) : k.silu ? all(Constant<SILU>{}) : all(Constant<LINEAR>{});
}

// Mean and deviation of each group in one pass, every channel about its first pixel; then a and t.
template <class X>
void coefficients(const Task& k, const X* x, int64_t b) {
    const int64_t C = k.channels, n = k.pixels, each = C / k.groups;
    float *a = k.a + b * C, *t = k.t + b * C, *mean = k.mean + b * C, *rstd = k.rstd + b * C;
    each_block(k, [&](auto, int64_t c, auto count) {
        const V first = load(x + c, count);
        V sum{}, square{};
        for (int64_t p = 1; p < n; p++) {
            const V d = load(x + p * C + c, count) - first;
            sum += d, square += d * d;
        }
        save(mean + c, first + sum / float(n), count);
        save(rstd + c, (square - sum * sum / float(n)) / float(n), count);  // the variance, until its group is known
    });
    for (int64_t g = 0; g < C; g += each) {
        float middle = 0, spread = 0;
        for (int64_t c = g; c < g + each; c++) middle += mean[c] / each;
        for (int64_t c = g; c < g + each; c++) spread += rstd[c] + (mean[c] - middle) * (mean[c] - middle);
        const float r = 1 / __builtin_sqrtf(std::max(spread / each, 0.f) + k.eps);
        for (int64_t c = g; c < g + each; c++) {
            const float s = k.scale ? k.scale[b * k.row + c] : 1.f, m = k.shift ? k.shift[b * k.row + c] : 0.f;
            mean[c] = middle, rstd[c] = r, a[c] = r * k.weight[c] * s;
            t[c] = (k.bias[c] - middle * r * k.weight[c]) * s + m;
        }
    }
}

template <class X, class Y>
void forward(const Task& k, const X* x, Y* y) {
    const int64_t C = k.channels, n = k.pixels;
#pragma omp parallel for num_threads(k.threads) if (k.threads > 1)
    for (int64_t b = 0; b < k.batch; b++) {
        static thread_local std::vector<uint32_t> keys;
        k.keys(b, keys);
        coefficients(k, x + b * n * C, b);
        each_block(k, [&](auto kind, int64_t c, auto count) {
            const V a = load(k.a + b * C + c, count), t = load(k.t + b * C + c, count);
            const Dropout dropout(k, c);
            for (int64_t p = 0, at = b * n * C + c; p < n; p++, at += C) {
                V u = a * load(x + at, count) + t;
                if (kind != LINEAR) u *= sigmoid(u);
                if (kind == DROPPED) u = dropout(u, keys[p]);
                save(y + at, u, count);
            }
        });
    }
}

// dx = a du + k1 x + k2; sums over pixels of du (x - mean) rstd and of du. u is made again; du is kept as float.
template <class X, class Y>
void backward(const Task& k, const X* x, const Y* dy, X* dx, float* along_all, float* sum_all) {
    const int64_t C = k.channels, n = k.pixels, each = C / k.groups;
#pragma omp parallel for num_threads(k.threads) if (k.threads > 1)
    for (int64_t b = 0; b < k.batch; b++) {
        static thread_local std::vector<uint32_t> keys;
        static thread_local std::vector<float> own;
        k.keys(b, keys);
        own.resize(2 * C + n * (C + WIDE));
        float *k1 = own.data(), *k2 = k1 + C, *du = k2 + C, *along = along_all + b * C, *sum = sum_all + b * C;
        const float *a = k.a + b * C, *t = k.t + b * C, *mean = k.mean + b * C, *rstd = k.rstd + b * C;
        each_block(k, [&](auto kind, int64_t c, auto count) {
            const V slope = load(a + c, count), start = load(t + c, count), middle = load(mean + c, count);
            const Dropout dropout(k, c);
            V s0{}, s1{};
            for (int64_t p = 0, at = b * n * C + c; p < n; p++, at += C) {
                const V v = load(x + at, count);
                V d = load(dy + at, count);
                const V u = slope * v + start, s = sigmoid(u);
                if (kind != LINEAR) d *= s * (1 + u * (1 - s));
                if (kind == DROPPED) d = dropout(d, keys[p]);
                save(du + c * n + p * WIDE, d, Whole{});
                s0 += d, s1 += d * (v - middle);
            }
            save(sum + c, s0, count);
            save(along + c, s1 * load(rstd + c, count), count);
        });
        for (int64_t g = 0; g < C; g += each) {
            float s0 = 0, s1 = 0;
            for (int64_t c = g; c < g + each; c++) s0 += a[c] * sum[c], s1 += a[c] * along[c];
            for (int64_t c = g; c < g + each; c++) k1[c] = -s1 * rstd[c] / float(n * each);
            for (int64_t c = g; c < g + each; c++) k2[c] = -s0 / float(n * each) - mean[c] * k1[c];
        }
        each_block(k, [&](auto, int64_t c, auto count) {
            const V by_du = load(a + c, count), by_x = load(k1 + c, count), rest = load(k2 + c, count);
            for (int64_t p = 0, at = b * n * C + c; p < n; p++, at += C) {
                const V d = load(du + c * n + p * WIDE, Whole{});
                save(dx + at, by_du * d + by_x * load(x + at, count) + rest, count);
            }
        });
    }
}
}  // namespace
#define BOTH(name, X, Y)                                                                                       \
    extern "C" void forward_##name(const Task* k, const X* x, Y* y) { forward(*k, x, y); }                     \
    extern "C" void backward_##name(const Task* k, const X* x, const Y* d, X* dx, float* along, float* sum) { \
        backward(*k, x, d, dx, along, sum);                                                                    \
    }
BOTH(ff, float, float)
BOTH(fb, float, bf16)
BOTH(bb, bf16, bf16)

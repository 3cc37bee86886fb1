// The processor's vectors of float32, by GCC's and Clang's extension: what every kernel here is written in.
#pragma once
#include <cstdint>

#if defined(__AVX512F__)
constexpr int64_t WIDE = 16;  // floats of a register: with twice as many a processor runs out of them
#else
constexpr int64_t WIDE = 8;
#endif
typedef float V __attribute__((vector_size(4 * WIDE)));
using bf16 = uint16_t;

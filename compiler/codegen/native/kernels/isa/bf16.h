/* bfloat16 dot products, where the CPU has them (AVX512_BF16): MIAOTUI_BF16_DOT says so. */
#ifndef MIAOTUI_ISA_BF16_H
#define MIAOTUI_ISA_BF16_H

#include "isa.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
enum { MIAOTUI_BF16_DOT = 1 };

/* Lane i += the two products of the bfloat16 pair i of `weights` and the pair `x`, in float32. */
INLINE vf32 dot_pair(vf32 sum, const void *weights, uint32_t x)
{
    const __m512bh w = (__m512bh)_mm512_load_si512(weights);
    return (vf32)_mm512_dpbf16_ps((__m512)sum, w, (__m512bh)_mm512_set1_epi32((int)x));
}
#else
enum { MIAOTUI_BF16_DOT = 0 };
INLINE vf32 dot_pair(vf32 sum, const void *weights, uint32_t x)
{
    (void)weights, (void)x;
    return sum;
}
#endif

/* x rounded to the nearest bfloat16, ties to even; NaN stays one. */
INLINE uint16_t bfloat16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    return (uint16_t)((x != x ? bits | 0x400000 : rounded) >> 16);
}

#endif

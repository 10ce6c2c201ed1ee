/* Dot products of pairs of 16-bit numbers: two to a lane, the first in its low half. */
#ifndef MIAOTUI_ISA_PAIRS_H
#define MIAOTUI_ISA_PAIRS_H

#include "isa.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
enum { PAIRS_ARE_FAST = 1 }; /* twice as many products as in floats */
#else
enum { PAIRS_ARE_FAST = 0 };
#endif

/* sum + a.low * b.low + a.high * b.high. */
INLINE vi32 dot_pairs(vi32 sum, vi32 a, vi32 b)
{
#if defined(__AVX512VNNI__) && LANE_BYTES == 64
    return (vi32)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__) && LANE_BYTES == 32
    return (vi32)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#elif defined(__AVX2__) && LANE_BYTES == 32
    return sum + (vi32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

INLINE vi32 join_pairs(vi32 low, vi32 high) { return (low & 0xffff) | high << 16; }

#endif

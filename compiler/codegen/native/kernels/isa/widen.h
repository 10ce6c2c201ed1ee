/* Bytes and halves from and to floats, in registers (isa.h has halves to floats). */
#ifndef MIAOTUI_ISA_WIDEN_H
#define MIAOTUI_ISA_WIDEN_H

#include "../vector_math.h"
#include "isa.h"

/* The greater of each lane; either, if one is NaN. */
INLINE f32x16 greater16(f32x16 a, f32x16 b)
{
#if defined(__AVX512F__)
    return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return max16(a, b);
#endif
}

/* LANES signed bytes at p as floats. */
INLINE vf32 from_bytes(const int8_t *p)
{
#if defined(__AVX512F__) && LANE_BYTES == 64
    return (vf32)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
#elif defined(__AVX2__) && LANE_BYTES == 32
    return (vf32)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
#elif LANE_BYTES == 16
    int32_t four; /* each byte to the top of its lane, then down with its sign */
    memcpy(&four, p, sizeof four);
    vi32 v = (vi32){0} + four;
    v = (v << (vi32){24, 16, 8, 0}) >> 24;
    return __builtin_convertvector(v, vf32);
#else
    vf32 v;
    for (int i = 0; i < LANES; i++)
        v[i] = p[i];
    return v;
#endif
}

/* Rounds to nearest even, beyond 65504 to infinity. */
INLINE uint16_t to_half(float x)
{
    uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (bits >= 0x47800000)
        return (uint16_t)(sign | 0x7c00);
    if (bits < 0x38800000) /* below 2^-14: adding 0.5 leaves the multiple of 2^-24 in the low bits */
        return (uint16_t)(sign | (bits_of(float_of(bits) + 0.5f) - 0x3f000000));
    return (uint16_t)(sign | ((bits + 0xc8000fff + (bits >> 13 & 1)) >> 13));
}

/* `count` floats as halves. */
INLINE void to_halves(const float *x, int64_t count, uint16_t *y)
{
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= count; i += 16)
        _mm256_storeu_si256((void *)(y + i),
                            _mm512_cvtps_ph(_mm512_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((void *)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < count; i++)
        y[i] = to_half(x[i]);
}

#endif

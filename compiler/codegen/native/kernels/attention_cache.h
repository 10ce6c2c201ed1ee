/* Rows of a key or value cache in memory: float32, float16, or int8 codes with their float scale behind them. */
#ifndef MIAOTUI_ATTENTION_CACHE_H
#define MIAOTUI_ATTENTION_CACHE_H

#include <math.h>

#include "base.h"

INLINE int64_t cache_row_bytes(cache_kind kind, int size)
{
    return kind == CACHE_I8 ? (int64_t)size + 4 : (int64_t)size * (kind == CACHE_F16 ? 2 : 4);
}

/* Rounds to nearest even, beyond 65504 to infinity. */
INLINE uint16_t half_from_float(float x)
{
    uint32_t bits, sign;
    memcpy(&bits, &x, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (bits >= 0x47800000)
        return (uint16_t)(sign | 0x7c00);
    if (bits < 0x38800000) { /* below 2^-14: adding 0.5 leaves the multiple of 2^-24 in the low bits */
        float tiny;
        memcpy(&tiny, &bits, 4);
        tiny += 0.5f;
        memcpy(&bits, &tiny, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | ((bits + 0xc8000fff + (bits >> 13 & 1)) >> 13));
}

INLINE float float_from_half(uint16_t half)
{
    const uint32_t magic = 0x77800000; /* 2^112: moves the exponent's bias, subnormals too */
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float x, factor;
    memcpy(&x, &bits, 4);
    memcpy(&factor, &magic, 4);
    x *= factor;
    memcpy(&bits, &x, 4);
    if ((half & 0x7c00) == 0x7c00)
        bits |= 0x7f800000;
    bits |= (uint32_t)(half & 0x8000) << 16;
    memcpy(&x, &bits, 4);
    return x;
}

INLINE void write_cache_row(cache_kind kind, const float *x, int size, unsigned char *row)
{
    if (kind == CACHE_F32) {
        memcpy(row, x, (size_t)size * 4);
    } else if (kind == CACHE_F16) {
        for (int i = 0; i < size; i++) {
            uint16_t half = half_from_float(x[i]);
            memcpy(row + 2 * i, &half, 2);
        }
    } else {
        float top = 0, scale, inverse;
        for (int i = 0; i < size; i++)
            top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
        scale = top / 127;
        inverse = top > 0 ? 127 / top : 0;
        for (int i = 0; i < size; i++)
            row[i] = (unsigned char)(signed char)rintf(x[i] * inverse);
        memcpy(row + size, &scale, 4);
    }
}

INLINE void read_cache_row(cache_kind kind, const unsigned char *row, int size, float *x)
{
    if (kind == CACHE_F16) {
        for (int i = 0; i < size; i++) {
            uint16_t half;
            memcpy(&half, row + 2 * i, 2);
            x[i] = float_from_half(half);
        }
    } else if (kind == CACHE_I8) {
        float scale;
        memcpy(&scale, row + size, 4);
        for (int i = 0; i < size; i++)
            x[i] = (float)(signed char)row[i] * scale;
    } else {
        memcpy(x, row, (size_t)size * 4);
    }
}

#endif

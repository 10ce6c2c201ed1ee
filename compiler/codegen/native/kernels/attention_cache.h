/* Rows of keys and values in memory: float32, float16, or int8 codes with their float scale behind them. */
#ifndef MIAOTUI_ATTENTION_CACHE_H
#define MIAOTUI_ATTENTION_CACHE_H

#include "attention_spec.h"
#include "isa/widen.h"

INLINE vf32 load_lanes(const float *p) { return *(const vf32_unaligned *)p; }
INLINE void store_lanes(float *p, vf32 v) { *(vf32_unaligned *)p = v; }

/* Rows of one head, `step` bytes apart. Of an int8 one, the scale is applied by who reads it. */
typedef struct rows_at {
    const unsigned char *first;
    int64_t step;
    cache_kind kind;
} rows_at;

INLINE int64_t element_bytes(cache_kind kind) { return kind == CACHE_I8 ? 1 : kind == CACHE_F16 ? 2 : 4; }

INLINE int64_t row_width(cache_kind kind, int size)
{
    return size * element_bytes(kind) + (kind == CACHE_I8 ? 4 : 0);
}

/* LANES elements at p as floats; an int8 row's codes. */
INLINE vf32 widen(cache_kind kind, const unsigned char *p)
{
    if (kind == CACHE_I8)
        return from_bytes((const int8_t *)p);
    return kind == CACHE_F16 ? from_halves((const uint16_t *)p) : load_lanes((const float *)p);
}

/* The first `count` lanes, at most LANES, zeros behind them. */
INLINE vf32 widen_part(cache_kind kind, const unsigned char *p, int count)
{
    _Alignas(64) unsigned char lanes[LANE_BYTES] = {0};
    memcpy(lanes, p, (size_t)(count * element_bytes(kind)));
    return widen(kind, lanes);
}

/* What an int8 row's codes are multiples of, else 1. */
INLINE float row_scale(cache_kind kind, const unsigned char *row, int size)
{
    float scale = 1;
    if (kind == CACHE_I8)
        memcpy(&scale, row + size, sizeof scale);
    return scale;
}

/* A row as floats; writes up to a multiple of LANES of them. */
INLINE void read_row(cache_kind kind, const unsigned char *row, int size, float *x)
{
    float scale = row_scale(kind, row, size);
    int i = 0;
    for (; i + LANES <= size; i += LANES)
        store_lanes(x + i, widen(kind, row + i * element_bytes(kind)) * scale);
    if (i < size)
        store_lanes(x + i, widen_part(kind, row + i * element_bytes(kind), size - i) * scale);
}

INLINE void write_codes(const float *x, int size, unsigned char *row)
{
    float top = 0;
    for (int i = 0; i < size; i++)
        top = magnitude1(x[i]) > top ? magnitude1(x[i]) : top;
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float scale = top / 127, inverse = top > 0 ? 127 / top : 0;
    for (int i = 0; i < size; i++)
        row[i] = (unsigned char)(bits_of(x[i] * inverse + magic) & 0xff);
    memcpy(row + size, &scale, sizeof scale);
}

INLINE void write_row(cache_kind kind, const float *x, int size, unsigned char *row)
{
    if (kind == CACHE_F32) {
        memcpy(row, x, (size_t)size * sizeof(float));
    } else if (kind == CACHE_I8) {
        write_codes(x, size, row);
    } else {
        to_halves(x, size, (uint16_t *)row);
    }
}

#endif

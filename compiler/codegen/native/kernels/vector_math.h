/* exp, log, tanh, erf and the activations, on 16 lanes (`exp16`) and on one float (`exp1`), without
 * branches.
 *
 * The scalar ones are written so that a loop around them becomes a vector loop. All are within 3 units in
 * the last place of the true value, or of the largest term where terms cancel; results below 2^-120 may
 * become 0. NaN stays NaN, infinities have their limits. (Not called math.h: this folder is searched
 * before the C library's.) */
#ifndef MIAOTUI_VECTOR_MATH_H
#define MIAOTUI_VECTOR_MATH_H

#include "isa/isa.h"

/* `mask` of a comparison: all bits or none. C has no `?:` on vectors; compilers turn this into one blend. */
INLINE f32x16 select16(i32x16 mask, f32x16 yes, f32x16 no)
{
    return (f32x16)((mask & (i32x16)yes) | (~mask & (i32x16)no));
}

INLINE f32x16 max16(f32x16 a, f32x16 b) { return select16(a > b, a, b); }
INLINE f32x16 min16(f32x16 a, f32x16 b) { return select16(a < b, a, b); }

/* The lanes of `v` joined in pairs, always in the same order. */
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));

INLINE float sum16(f32x16 v)
{
    f32x8 a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7)
              + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    f32x4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
    return (b[0] + b[2]) + (b[1] + b[3]);
}

INLINE float largest16(f32x16 v)
{
    float most = v[0];
    for (int i = 1; i < 16; i++)
        most = v[i] > most ? v[i] : most;
    return most;
}

/* The first `count` (0 to 16) floats at p, `rest` behind them. */
INLINE f32x16 load_part(const float *p, int64_t count, float rest)
{
    float lanes[16];
    for (int i = 0; i < 16; i++)
        lanes[i] = rest;
    memcpy(lanes, p, (size_t)count * sizeof(float));
    return load16(lanes);
}

INLINE void store_part(float *p, int64_t count, f32x16 v)
{
    float lanes[16];
    store16(lanes, v);
    memcpy(p, lanes, (size_t)count * sizeof(float));
}

INLINE uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

typedef uint32_t u32x16 __attribute__((vector_size(64)));

#if LANE_BYTES == 64
#define FLOATS f32x16
#define BITS u32x16
#define NAMED(name) name##16
#define TO_BITS(x) ((u32x16)(x))
#define FROM_BITS(x) ((f32x16)(x))
#define SELECT(mask, yes, no) select16(mask, yes, no)
#define CONSTANT(x) splat16(x)
#define TO_NUMBERS(bits) __builtin_convertvector((i32x16)(bits), f32x16)
#include "vector_math_body.h"
#else
/* Registers hold less than 16 lanes: a function goes through them one by one, or its values would lie in
 * memory. */
typedef uint32_t vu32 __attribute__((vector_size(LANE_BYTES)));
#define FLOATS vf32
#define BITS vu32
#define NAMED(name) name##_of_lanes
#define TO_BITS(x) ((vu32)(x))
#define FROM_BITS(x) ((vf32)(x))
#define SELECT(mask, yes, no) ((vf32)(((mask) & (vi32)(yes)) | (~(mask) & (vi32)(no))))
#define CONSTANT(x) ((x) - (vf32){0})
#define TO_NUMBERS(bits) __builtin_convertvector((vi32)(bits), vf32)
#include "vector_math_body.h"

#define BY_LANES(name)                                                                                       \
    INLINE f32x16 name##16(f32x16 x)                                                                         \
    {                                                                                                        \
        union {                                                                                              \
            f32x16 whole;                                                                                    \
            vf32 pieces[PIECES];                                                                             \
        } v = {x};                                                                                           \
        for (int i = 0; i < PIECES; i++)                                                                     \
            v.pieces[i] = name##_of_lanes(v.pieces[i]);                                                      \
        return v.whole;                                                                                      \
    }
BY_LANES(exp)
BY_LANES(log)
BY_LANES(tanh)
BY_LANES(erf)
BY_LANES(sigmoid)
BY_LANES(relu)
BY_LANES(silu)
BY_LANES(quick_gelu)
BY_LANES(gelu)
BY_LANES(gelu_tanh)
#undef BY_LANES
#endif

#define FLOATS float
#define BITS uint32_t
#define NAMED(name) name##1
#define TO_BITS(x) bits_of(x)
#define FROM_BITS(x) float_of(x)
#define SELECT(mask, yes, no) ((mask) ? (yes) : (no))
#define CONSTANT(x) (x)
#define TO_NUMBERS(bits) ((float)(int32_t)(bits))
#include "vector_math_body.h"

#endif

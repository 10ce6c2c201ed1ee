/* Operators on one element, for the loops that emitted code writes around them; without branches where they allow.
 *
 * Integers wrap around. What C leaves open has a value here, numpy's on x86: a float outside of the integers becomes
 * the smallest of them, and x / 0 is 0. */
#ifndef MIAOTUI_ELEMENTWISE_H
#define MIAOTUI_ELEMENTWISE_H

#include <math.h>

#include "vector_math.h"

#define INTEGER_OPERATORS(T, U, NAME)                                                                   \
    INLINE T add_##NAME(T a, T b) { return (T)((U)a + (U)b); }                                          \
    INLINE T sub_##NAME(T a, T b) { return (T)((U)a - (U)b); }                                          \
    INLINE T mul_##NAME(T a, T b) { return (T)((U)a * (U)b); }                                          \
    INLINE T neg_##NAME(T a) { return (T)(0 - (U)a); }                                                  \
    INLINE T abs_##NAME(T a) { return a < 0 ? neg_##NAME(a) : a; }                                      \
    INLINE T sign_##NAME(T a) { return (a > 0) - (a < 0); }                                             \
    INLINE T div_##NAME(T a, T b) { return b == 0 ? 0 : b == -1 ? neg_##NAME(a) : a / b; }              \
    INLINE T fmod_##NAME(T a, T b) { return b == 0 || b == -1 ? 0 : a % b; }                            \
    INLINE T mod_##NAME(T a, T b)                                                                       \
    {                                                                                                   \
        T rest = fmod_##NAME(a, b);                                                                     \
        return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;                                    \
    }                                                                                                   \
    INLINE T max_##NAME(T a, T b) { return a > b ? a : b; }                                             \
    INLINE T min_##NAME(T a, T b) { return a < b ? a : b; }                                             \
    INLINE T select_##NAME(uint8_t condition, T yes, T no) { return condition ? yes : no; }             \
    INLINE T pow_##NAME(T base, T exponent)                                                             \
    {                                                                                                   \
        if (exponent < 0)                                                                               \
            return base == 1 ? 1 : base == -1 ? (exponent & 1 ? -1 : 1) : 0;                            \
        T result = 1;                                                                                   \
        for (; exponent > 0; exponent >>= 1) {                                                          \
            if (exponent & 1)                                                                           \
                result = mul_##NAME(result, base);                                                      \
            base = mul_##NAME(base, base);                                                              \
        }                                                                                               \
        return result;                                                                                  \
    }

INTEGER_OPERATORS(int64_t, uint64_t, i64)
INTEGER_OPERATORS(int32_t, uint32_t, i32)
#undef INTEGER_OPERATORS

INLINE uint8_t select_bool(uint8_t condition, uint8_t yes, uint8_t no) { return condition ? yes : no; }

INLINE int64_t to_i64(float x)
{
    int fits = x >= -9223372036854775808.0f && x < 9223372036854775808.0f;
    return (int64_t)(fits ? x : -9223372036854775808.0f);
}

INLINE int32_t to_i32(float x)
{
    int fits = x >= -2147483648.0f && x < 2147483648.0f;
    return (int32_t)(fits ? x : -2147483648.0f);
}

/* NaN if either is. */
INLINE float max_f32(float a, float b) { return a > b || a != a ? a : b; }
INLINE float min_f32(float a, float b) { return a < b || a != a ? a : b; }
INLINE float select_f32(uint8_t condition, float yes, float no) { return condition ? yes : no; }
INLINE float sign_f32(float x) { return x != x ? x : (float)((x > 0) - (x < 0)); }
INLINE float square(float x) { return x * x; }
INLINE float cube(float x) { return x * x * x; }

/* The sign of the divisor, as Python's; fmodf has that of the dividend. */
INLINE float mod_f32(float a, float b)
{
    float rest = fmodf(a, b);
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

INLINE float softplus(float x) { return max_f32(x, 0) + log1pf(exp1(-fabsf(x))); }
INLINE float softsign(float x) { return x / (1 + fabsf(x)); }
INLINE float mish(float x) { return x * tanh1(softplus(x)); }
INLINE float elu(float x, float alpha) { return x > 0 ? x : alpha * expm1f(x); }
INLINE float celu(float x, float alpha) { return max_f32(x, 0) + min_f32(alpha * expm1f(x / alpha), 0); }
INLINE float leaky_relu(float x, float slope) { return x < 0 ? slope * x : x; }
INLINE float thresholded_relu(float x, float alpha) { return x > alpha ? x : 0; }
INLINE float hard_sigmoid(float x, float alpha, float beta) { return max_f32(0, min_f32(1, alpha * x + beta)); }
INLINE float hard_swish(float x) { return x * hard_sigmoid(x, 1.0f / 6, 0.5f); }
INLINE float swish(float x, float alpha) { return x * sigmoid1(alpha * x); }
INLINE float shrink(float x, float lambda, float bias) { return x < -lambda ? x + bias : x > lambda ? x - bias : 0; }
INLINE uint8_t is_infinite(float x, int positive, int negative)
{
    return (positive && x == HUGE_VALF) || (negative && x == -HUGE_VALF);
}

#endif

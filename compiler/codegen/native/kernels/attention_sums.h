/* Sums over some of a query's keys, and how they become the output. */
#ifndef MIAOTUI_ATTENTION_SUMS_H
#define MIAOTUI_ATTENTION_SUMS_H

#include "attention_plan.h"

/* e^x of x at most 0, like exp16, without its other cases. */
INLINE f32x16 weight16(f32x16 x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, kept in the low bits */
    f32x16 shifted = x * 1.44269504f + magic, n = shifted - magic;
    f32x16 r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    f32x16 p = splat16(0.00138131424f);
    p = p * r + 0.00836941904f;
    p = p * r + 0.0416684568f;
    p = p * r + 0.166665148f;
    p = p * r + 0.499999931f;
    p = p * (r * r) + r + 1.0f;
    i32x16 bits = (i32x16)p + ((i32x16)shifted << 23);
    return (f32x16)(bits & (x > -87.3f));
}

/* Of each query row of an item: its greatest score, the sum of its weights e^(score - top), and the values
 * times these weights, `value_size` floats. */
typedef struct partial_sums {
    float *top, *total, *values;
} partial_sums;

INLINE int64_t sums_floats(const attention_spec *spec, int64_t rows) { return rows * (spec->value_size + 2); }

INLINE partial_sums sums_at(float *at, int64_t rows) { return (partial_sums){at, at + rows, at + 2 * rows}; }

/* Where the output of query row m lies. */
INLINE float *output_row(const attention_args *args, const attention_plan *p, const attention_item *item,
                         int64_t m)
{
    int64_t head = item->head * p->group + m % p->group;
    return args->y + offset_at(args->y_at, item->row, head, item->begin + m / p->group);
}

/* y = x * factor. */
INLINE void scale_row(const float *x, int size, float factor, float *y)
{
    for (int i = 0; i < size; i++)
        y[i] = x[i] * factor;
}

/* 1 / total, but 0 for a query that sees no key. */
INLINE float inverse_of(float total) { return total > 0 ? 1 / total : 0; }

/* Row m of the output from the partial sums of `chunks` items, always in the same order. */
INLINE void merge_row(const attention_spec *spec, float *at, int64_t rows, int64_t chunks, int64_t m,
                      float *y)
{
    int64_t step = sums_floats(spec, rows);
    int size = spec->value_size;
    float top = -__builtin_inff(), total = 0;
    for (int64_t c = 0; c < chunks; c++)
        top = at[c * step + m] > top ? at[c * step + m] : top;
    if (top == -__builtin_inff())
        top = 0;
    for (int64_t c = 0; c < chunks; c++)
        total += exp1(at[c * step + m] - top) * at[c * step + rows + m];
    float inverse = inverse_of(total);
    for (int64_t c = 0; c < chunks; c++) {
        partial_sums part = sums_at(at + c * step, rows);
        const float *x = part.values + m * size;
        float factor = exp1(part.top[m] - top) * inverse;
        for (int i = 0; i < size; i++)
            y[i] = c ? y[i] + x[i] * factor : x[i] * factor;
    }
}

#endif

/* Attention of a few query rows, as in decoding: every key is read once and multiplied with all of them. */
#ifndef MIAOTUI_ATTENTION_FEW_H
#define MIAOTUI_ATTENTION_FEW_H

#include "attention_sums.h"

/* Query rows that stay in registers, keys or vectors of values beside them. */
#if LANE_BYTES == 64 || defined(__aarch64__)
enum { FEW_BLOCK = 4 };
#else
enum { FEW_BLOCK = 2 };
#endif
enum { FEW_STEP = 4 };

typedef float quarter __attribute__((vector_size(16)));

/* The sums of the lanes of a, b, c, d. */
INLINE quarter sum_lanes(vf32 a, vf32 b, vf32 c, vf32 d)
{
#if LANE_BYTES == 64
    vf32 ab = __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
              + __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    vf32 cd = __builtin_shufflevector(c, d, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
              + __builtin_shufflevector(c, d, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    vf32 all = __builtin_shufflevector(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
               + __builtin_shufflevector(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    f32x8 half = __builtin_shufflevector(all, all, 0, 1, 2, 3, 4, 5, 6, 7)
                 + __builtin_shufflevector(all, all, 8, 9, 10, 11, 12, 13, 14, 15);
    return __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#elif LANE_BYTES == 32
    vf32 ab = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
              + __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    vf32 cd = __builtin_shufflevector(c, d, 0, 8, 1, 9, 4, 12, 5, 13)
              + __builtin_shufflevector(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    vf32 all = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13)
               + __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    return __builtin_shufflevector(all, all, 0, 1, 2, 3) + __builtin_shufflevector(all, all, 4, 5, 6, 7);
#else
    vf32 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    vf32 cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
#endif
}

/* Scores of `rows` queries with FEW_STEP keys: scores[r][0..3], FEW_KEYS apart. q: rows `width` floats apart,
 * zeros behind `size`. */
INLINE void score_four(cache_kind kind, const float *q, int64_t width, const unsigned char *const *key, int size,
                       const int rows, float *scores)
{
    vf32 sum[FEW_BLOCK][FEW_STEP];
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < FEW_STEP; k++)
            sum[r][k] = (vf32){0};
    for (int d = 0; d < size; d += LANES) {
        vf32 x[FEW_STEP];
        for (int k = 0; k < FEW_STEP; k++) {
            const unsigned char *p = key[k] + d * element_bytes(kind);
            x[k] = d + LANES <= size ? widen(kind, p) : widen_part(kind, p, size - d);
        }
        for (int r = 0; r < rows; r++) {
            vf32 query = load_lanes(q + r * width + d);
            for (int k = 0; k < FEW_STEP; k++)
                sum[r][k] += query * x[k];
        }
    }
    for (int r = 0; r < rows; r++) {
        quarter s = sum_lanes(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
        for (int k = 0; k < FEW_STEP; k++)
            s[k] *= row_scale(kind, key[k], size);
        memcpy(scores + r * FEW_KEYS, &s, sizeof s);
    }
}

INLINE void few_scores(rows_at keys, int64_t first, int64_t count, const float *q, int64_t width, int size,
                       const int rows, float *scores)
{
    for (int64_t j = 0; j < count; j += FEW_STEP) {
        const unsigned char *key[FEW_STEP];
        for (int k = 0; k < FEW_STEP; k++)
            key[k] = keys.first + (first + min64(j + k, count - 1)) * keys.step;
        score_four(keys.kind, q, width, key, size, rows, scores + j);
    }
}

/* Scores into weights e^(score - top), which it returns with their sum; behind `count` there are zeros. */
INLINE void few_weights(float *scores, int64_t count, float *top, float *total)
{
    int64_t padded = round_up(count, 16);
    f32x16 most = splat16(-__builtin_inff()), sum = splat16(0);
    for (int64_t j = count; j < padded; j++)
        scores[j] = -__builtin_inff();
    for (int64_t j = 0; j < padded; j += 16)
        most = max16(load16(scores + j), most);
    *top = largest16(most);
    float finite = *top == -__builtin_inff() ? 0 : *top;
    for (int64_t j = 0; j < padded; j += 16) {
        f32x16 weight = exp16(load16(scores + j) - finite);
        store16(scores + j, weight);
        sum += weight;
    }
    *total = sum16(sum);
}

/* Columns d .. of sums[r] = the values times the weights of `rows` rows; `vectors` of LANES, the last `part`. */
INLINE void value_columns(rows_at values, int64_t first, int64_t count, const float *weights, const int rows,
                          const int vectors, int part, int d, float *sums, int64_t width)
{
    const unsigned char *value = values.first + first * values.step + d * element_bytes(values.kind);
    vf32 sum[FEW_BLOCK][FEW_STEP];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            sum[r][v] = (vf32){0};
    for (int64_t j = 0; j < count; j++, value += values.step) {
        vf32 x[FEW_STEP];
        for (int v = 0; v < vectors; v++) {
            const unsigned char *p = value + v * LANES * element_bytes(values.kind);
            x[v] = v < vectors - 1 || part == LANES ? widen(values.kind, p) : widen_part(values.kind, p, part);
        }
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++)
                sum[r][v] += x[v] * weights[r * FEW_KEYS + j];
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            store_lanes(sums + r * width + d + v * LANES, sum[r][v]);
}

INLINE void few_values(rows_at values, int64_t first, int64_t count, const float *weights, const int rows, int size,
                       float *sums, int64_t width)
{
    int d = 0;
    for (; d + FEW_STEP * LANES <= size; d += FEW_STEP * LANES)
        value_columns(values, first, count, weights, rows, FEW_STEP, LANES, d, sums, width);
    for (; d + LANES <= size; d += LANES)
        value_columns(values, first, count, weights, rows, 1, LANES, d, sums, width);
    if (d < size)
        value_columns(values, first, count, weights, rows, 1, size - d, d, sums, width);
}

/* Soft cap, bias and the bounds of row m's sight, on its scores of keys `first` to `last`. */
INLINE void adjust_scores(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                          const attention_item *item, int64_t m, float *scores)
{
    int64_t token = item->begin + m / p->group, head = item->head * p->group + m % p->group;
    int64_t count = item->last - item->first;
    if (spec->softcap != 0)
        for (int64_t j = 0; j < count; j += 16)
            store16(scores + j, tanh16(load16(scores + j) * (1 / spec->softcap)) * spec->softcap);
    if (args->bias) {
        const float *bias = args->bias + offset_at(args->bias_at, item->row, head, token) + item->first * args->bias_key;
        for (int64_t j = 0; j < count; j++)
            scores[j] += bias[j * args->bias_key];
    }
    range seen = seen_keys(spec, args, base_of(spec, args, item->row) + token);
    for (int64_t j = 0; j < min64(seen.begin - item->first, count); j++)
        scores[j] = -__builtin_inff();
    for (int64_t j = max64(seen.end - item->first, 0); j < count; j++)
        scores[j] = -__builtin_inff();
}

/* Scratch: scores of FEW_BLOCK rows, all queries, the sums of FEW_BLOCK rows. */
INLINE int64_t few_floats(const attention_spec *spec, int64_t rows)
{
    return FEW_BLOCK * FEW_KEYS + rows * round_up(spec->size, 16) + FEW_BLOCK * round_up(spec->value_size, 16) + 2 * rows;
}

/* Query rows m .. m + rows; their tops, totals and sums are left in `scratch`. */
INLINE void few_rows(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                     const attention_item *item, rows_at keys, rows_at values, int64_t m, const int rows,
                     const float *q, float *scores, float *sums, float *top, float *total)
{
    int64_t count = item->last - item->first;
    few_scores(keys, item->first, count, q + m * round_up(spec->size, 16), round_up(spec->size, 16), spec->size, rows,
               scores);
    for (int r = 0; r < rows; r++) {
        adjust_scores(spec, args, p, item, m + r, scores + r * FEW_KEYS);
        few_weights(scores + r * FEW_KEYS, count, &top[r], &total[r]);
    }
    if (values.kind == CACHE_I8)
        for (int64_t j = 0; j < count; j++)
            for (int r = 0; r < rows; r++)
                scores[r * FEW_KEYS + j] *=
                    row_scale(CACHE_I8, values.first + (item->first + j) * values.step, spec->value_size);
    few_values(values, item->first, count, scores, rows, spec->value_size, sums, round_up(spec->value_size, 16));
}

INLINE void few_item(worker *w, const attention_spec *spec, const attention_args *args, const attention_plan *p,
                     const attention_item *item, float *partial)
{
    int64_t rows = (item->end - item->begin) * p->group, width = round_up(spec->size, 16);
    int64_t value_width = round_up(spec->value_size, 16);
    float *scores = (float *)w->scratch, *q = scores + FEW_BLOCK * FEW_KEYS, *sums = q + rows * width;
    float top[FEW_BLOCK], total[FEW_BLOCK];
    float scale = scale_of(spec);
    if (spec->cache != CACHE_NONE) {
        int64_t base = args->lengths[item->row];
        write_new_rows(spec, args, item->row, item->head, max64(item->first - base, 0), item->last - base, q);
    }
    for (int64_t m = 0; m < rows; m++) {
        int64_t token = item->begin + m / p->group, head = item->head * p->group + m % p->group;
        memset(q + m * width, 0, (size_t)width * sizeof(float));
        turn_row(spec, args, args->query_norm, args->query + offset_at(args->query_at, item->row, head, token),
                 item->row, token, scale, q + m * width);
    }
    rows_at keys = keys_of(w, spec, args, item->row, item->head);
    rows_at values = values_of(spec, args, item->row, item->head);
    for (int64_t m = 0; m < rows; m += FEW_BLOCK) {
        int64_t here = min64(FEW_BLOCK, rows - m);
        switch (here) {
        case 1: few_rows(spec, args, p, item, keys, values, m, 1, q, scores, sums, top, total); break;
        case 2: few_rows(spec, args, p, item, keys, values, m, 2, q, scores, sums, top, total); break;
#if LANE_BYTES == 64 || defined(__aarch64__)
        case 3: few_rows(spec, args, p, item, keys, values, m, 3, q, scores, sums, top, total); break;
        default: few_rows(spec, args, p, item, keys, values, m, 4, q, scores, sums, top, total); break;
#endif
        }
        for (int64_t r = 0; r < here; r++) {
            if (item->chunks > 1) {
                partial_sums part = sums_at(partial, rows);
                part.top[m + r] = top[r];
                part.total[m + r] = total[r];
                memcpy(part.values + (m + r) * spec->value_size, sums + r * value_width,
                       (size_t)spec->value_size * sizeof(float));
            } else {
                scale_row(sums + r * value_width, spec->value_size, inverse_of(total[r]),
                          output_row(args, p, item, m + r));
            }
        }
    }
}

#endif

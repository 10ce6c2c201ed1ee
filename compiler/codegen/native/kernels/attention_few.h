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

/* Lanes of a, b, c, d in turn, each the sum of those that are 4 apart and fewer: one of a's, of b's ... */
INLINE vf32 fold_four(const vf32 *v)
{
#if LANE_BYTES == 64
    vf32 ab =
        __builtin_shufflevector(v[0], v[1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
        + __builtin_shufflevector(v[0], v[1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    vf32 cd =
        __builtin_shufflevector(v[2], v[3], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
        + __builtin_shufflevector(v[2], v[3], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    return __builtin_shufflevector(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
           + __builtin_shufflevector(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
#elif LANE_BYTES == 32
    vf32 ab = __builtin_shufflevector(v[0], v[1], 0, 8, 1, 9, 4, 12, 5, 13)
              + __builtin_shufflevector(v[0], v[1], 2, 10, 3, 11, 6, 14, 7, 15);
    vf32 cd = __builtin_shufflevector(v[2], v[3], 0, 8, 1, 9, 4, 12, 5, 13)
              + __builtin_shufflevector(v[2], v[3], 2, 10, 3, 11, 6, 14, 7, 15);
    return __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13)
           + __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
#else
    vf32 ab =
        __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5) + __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
    vf32 cd =
        __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5) + __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
#endif
}

/* From LANES / 4 results of fold_four: the sum of all lanes of every vector that went in, in their order. */
INLINE vf32 fold_pieces(const vf32 *v)
{
#if LANE_BYTES == 64
    vf32 a =
        __builtin_shufflevector(v[0], v[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
        + __builtin_shufflevector(v[0], v[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    vf32 b =
        __builtin_shufflevector(v[2], v[3], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
        + __builtin_shufflevector(v[2], v[3], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
           + __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
#elif LANE_BYTES == 32
    return __builtin_shufflevector(v[0], v[1], 0, 1, 2, 3, 8, 9, 10, 11)
           + __builtin_shufflevector(v[0], v[1], 4, 5, 6, 7, 12, 13, 14, 15);
#else
    return v[0];
#endif
}

/* Products of `rows` queries with FEW_STEP keys, folded. q: rows `width` floats apart, zeros behind `size`.
 */
INLINE void score_four(cache_kind kind, const float *q, int64_t width, const unsigned char *const *key,
                       int size, const int rows, vf32 *folded, const int apart)
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
    for (int r = 0; r < rows; r++)
        folded[r * apart] = fold_four(sum[r]);
}

/* Bring `count` rows near, `bytes` each. Keys and values take turns, FEW_KEYS rows each: too short for the
 * processor to foresee, so each is asked for while the other is worked on. */
INLINE void fetch_rows(rows_at rows, int64_t first, int64_t count, int64_t bytes)
{
    const unsigned char *p = rows.first + first * rows.step, *end = p + (count - 1) * rows.step + bytes;
    if (rows.step > bytes + 64)
        for (int64_t j = 0; j < count; j++)
            for (int64_t i = 0; i < bytes; i += 64)
                __builtin_prefetch(p + j * rows.step + i, 0, 2);
    else
        for (; p < end; p += 64)
            __builtin_prefetch(p, 0, 2);
}

/* scores[r][j] of `count` keys, FEW_KEYS apart, and behind them up to a multiple of LANES of anything. */
INLINE void few_scores(const attention_spec *spec, rows_at keys, rows_at values, int64_t first, int64_t count,
                       const float *q, int64_t width, const int rows, float *scores)
{
    for (int64_t j = 0; j < count; j += LANES) {
        vf32 folded[FEW_BLOCK][LANES / FEW_STEP];
        for (int i = 0; i < LANES / FEW_STEP; i++) {
            const unsigned char *key[FEW_STEP];
            for (int k = 0; k < FEW_STEP; k++)
                key[k] = keys.first + (first + min64(j + FEW_STEP * i + k, count - 1)) * keys.step;
            fetch_rows(values, first + j + FEW_STEP * i, FEW_STEP, row_width(values.kind, spec->value_size));
            score_four(keys.kind, q, width, key, spec->size, rows, &folded[0][i], LANES / FEW_STEP);
        }
        for (int r = 0; r < rows; r++)
            store_lanes(scores + r * FEW_KEYS + j, fold_pieces(folded[r]));
    }
}

/* x[r][j] times what int8 row j is a multiple of. */
INLINE void few_scales(rows_at rows_of, int64_t first, int64_t count, int size, const int rows, float *x)
{
    const unsigned char *at = rows_of.first + first * rows_of.step;
    if (rows_of.kind == CACHE_I8)
        for (int64_t j = 0; j < count; j++) {
            float scale = row_scale(CACHE_I8, at + j * rows_of.step, size);
            for (int r = 0; r < rows; r++)
                x[r * FEW_KEYS + j] *= scale;
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
        most = greater16(load16(scores + j), most);
    *top = largest16(most);
    float finite = *top == -__builtin_inff() ? 0 : *top;
    for (int64_t j = 0; j < padded; j += 16) {
        f32x16 weight = weight16(load16(scores + j) - finite);
        store16(scores + j, weight);
        sum += weight;
    }
    *total = sum16(sum);
}

/* Columns d .. of sums[r] = the values times the weights of `rows` rows; `vectors` of LANES, the last `part`.
 */
INLINE void value_columns(rows_at keys, int64_t key_bytes, rows_at values, int64_t first, int64_t count,
                          const float *weights, const int rows, const int vectors, int part, int d,
                          float *sums, int64_t width)
{
    const unsigned char *value = values.first + first * values.step + d * element_bytes(values.kind);
    vf32 sum[FEW_BLOCK][FEW_STEP];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            sum[r][v] = (vf32){0};
    for (int64_t j = 0; j < count; j++, value += values.step) {
        vf32 x[FEW_STEP];
        if (d == 0)
            fetch_rows(keys, first + j + FEW_KEYS, 1, key_bytes);
        for (int v = 0; v < vectors; v++) {
            const unsigned char *p = value + v * LANES * element_bytes(values.kind);
            x[v] =
                v < vectors - 1 || part == LANES ? widen(values.kind, p) : widen_part(values.kind, p, part);
        }
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++)
                sum[r][v] += x[v] * weights[r * FEW_KEYS + j];
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            store_lanes(sums + r * width + d + v * LANES, sum[r][v]);
}

INLINE void few_values(rows_at keys, int64_t key_bytes, rows_at values, int64_t first, int64_t count,
                       const float *weights, const int rows, int size, float *sums, int64_t width)
{
    int d = 0;
    for (; d + FEW_STEP * LANES <= size; d += FEW_STEP * LANES)
        value_columns(keys, key_bytes, values, first, count, weights, rows, FEW_STEP, LANES, d, sums, width);
    for (; d + LANES <= size; d += LANES)
        value_columns(keys, key_bytes, values, first, count, weights, rows, 1, LANES, d, sums, width);
    if (d < size)
        value_columns(keys, key_bytes, values, first, count, weights, rows, 1, size - d, d, sums, width);
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
        const float *bias =
            args->bias + offset_at(args->bias_at, item->row, head, token) + item->first * args->bias_key;
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
    return FEW_BLOCK * FEW_KEYS + rows * round_up(spec->size, 16) + FEW_BLOCK * round_up(spec->value_size, 16)
           + 2 * rows;
}

/* Query rows m .. m + rows; their tops, totals and sums are left in `scratch`. */
INLINE void few_rows(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                     const attention_item *item, rows_at keys, rows_at values, int64_t m, const int rows,
                     const float *q, float *scores, float *sums, float *top, float *total)
{
    int64_t count = item->last - item->first;
    int64_t width = round_up(spec->size, 16), value_width = round_up(spec->value_size, 16);
    few_scores(spec, keys, values, item->first, count, q + m * width, width, rows, scores);
    few_scales(keys, item->first, count, spec->size, rows, scores);
    for (int r = 0; r < rows; r++) {
        adjust_scores(spec, args, p, item, m + r, scores + r * FEW_KEYS);
        few_weights(scores + r * FEW_KEYS, count, &top[r], &total[r]);
    }
    few_scales(values, item->first, count, spec->value_size, rows, scores);
    few_values(keys, row_width(keys.kind, spec->size), values, item->first, count, scores, rows,
               spec->value_size, sums, value_width);
}

INLINE void few_item(worker *w, const attention_spec *spec, const attention_args *args,
                     const attention_plan *p, const attention_item *item, float *partial)
{
    int64_t rows = (item->end - item->begin) * p->group, width = round_up(spec->size, 16);
    int64_t value_width = round_up(spec->value_size, 16);
    float *scores = (float *)w->scratch, *q = scores + FEW_BLOCK * FEW_KEYS, *sums = q + rows * width;
    float top[FEW_BLOCK], total[FEW_BLOCK];
    float scale = scale_of(spec);
    if (spec->cache != CACHE_NONE)
        write_item_rows(spec, args, item, q);
    for (int64_t m = 0; m < rows; m++) {
        int64_t token = item->begin + m / p->group, head = item->head * p->group + m % p->group;
        memset(q + m * width, 0, (size_t)width * sizeof(float));
        turn_row(spec, args, args->query_norm,
                 args->query + offset_at(args->query_at, item->row, head, token), item->row, token, scale,
                 q + m * width);
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

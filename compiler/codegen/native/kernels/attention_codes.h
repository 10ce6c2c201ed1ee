/* Tiles of 16-bit codes: twice as many products to an instruction as floats where the CPU has VNNI.
 *
 * For caches that are rounded themselves. A row of queries, keys or values is codes times a scale; bounds on
 * the codes keep sums within 31 bits. Codes lie in pairs: of a query or key, dimensions i and i + half; of
 * values and weights, two keys. */
#ifndef MIAOTUI_ATTENTION_CODES_H
#define MIAOTUI_ATTENTION_CODES_H

#include "attention_panels.h"
#include "isa/pairs.h"

/* Weights are codes up to WEIGHT_CODES, values up to VALUE_CODES: TILE_KEYS products are less than 2^31. */
enum { WEIGHT_CODES = 16383, VALUE_CODES = 2047 };

INLINE int uses_codes(const attention_spec *spec)
{
    return PAIRS_ARE_FAST && (spec->cache == CACHE_F16 || spec->cache == CACHE_I8);
}

/* The greatest code of queries and keys: `size` products of two are less than 2^31. */
INLINE float query_codes(int size) { return __builtin_floorf(__builtin_sqrtf(2147000000.0f / (float)size)); }

INLINE int64_t half_of(int size) { return (size + 1) / 2; }

INLINE vi32 load_pairs(const float *p) { return (vi32)load_lanes(p); }
INLINE void store_pairs(float *p, vi32 v) { store_lanes(p, (vf32)v); }

INLINE vi32 every_pair(const float *p)
{
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return (vi32){0} + pair;
}

INLINE vi32 larger_lanes(vi32 a, vi32 b) { return (a & (a > b)) | (b & ~(a > b)); }

/* The greatest |x| of `count` floats and the zeros behind them: magnitudes are in the order of their bits. */
INLINE float greatest_magnitude(const float *x, int64_t count)
{
    vi32 top = {0};
    for (int64_t i = 0; i < count; i += LANES)
        top = larger_lanes((vi32)load_lanes(x + i) & 0x7fffffff, top);
#if LANE_BYTES == 64
    top = larger_lanes(top, __builtin_shufflevector(top, top, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5,
                                                    6, 7));
    top =
        larger_lanes(top, __builtin_shufflevector(top, top, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3));
    top =
        larger_lanes(top, __builtin_shufflevector(top, top, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1));
    top =
        larger_lanes(top, __builtin_shufflevector(top, top, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0));
#else
    for (int i = 1; i < LANES; i++)
        top[0] = top[i] > top[0] ? top[i] : top[0];
#endif
    return float_of((uint32_t)top[0]);
}

/* What codes up to `limit` of a row are multiples of. x: with zeros behind. */
INLINE float code_scale(const float *x, int size, float limit) { return greatest_magnitude(x, size) / limit; }

INLINE float inverse_scale(float scale) { return scale > 0 ? 1 / scale : 0; }

/* Pairs (i, i + half) of the row x * inverse; up to LANES more behind them. */
INLINE void pair_halves(const float *x, int size, float inverse, float *pairs)
{
    int64_t half = half_of(size);
    for (int64_t i = 0; i < half; i += LANES)
        store_pairs(pairs + i, join_pairs(round_lanes(load_lanes(x + i) * inverse),
                                          round_lanes(load_lanes(x + half + i) * inverse)));
}

/* A cached row into `stage`, behind which there are zeros: its codes, if it is int8. Returns the scale of
 * 16-bit codes, and what x is multiplied with to become them. */
INLINE float stage_row(rows_at rows, int64_t j, int size, float limit, float *stage, float *inverse)
{
    const unsigned char *row = rows.first + j * rows.step;
    int i = 0;
    for (; i + LANES <= size; i += LANES)
        store_lanes(stage + i, widen(rows.kind, row + i * element_bytes(rows.kind)));
    if (i < size)
        store_lanes(stage + i, widen_part(rows.kind, row + i * element_bytes(rows.kind), size - i));
    if (rows.kind == CACHE_I8) {
        *inverse = 1;
        return row_scale(rows.kind, row, size);
    }
    float scale = code_scale(stage, size, limit);
    *inverse = inverse_scale(scale);
    return scale;
}

/* Keys of a tile in pairs. */
INLINE void code_keys(const attention_spec *spec, const tile_state *s, rows_at keys, int64_t first,
                      int64_t count)
{
    memset(s->stage, 0, (size_t)s->key_step * sizeof(float));
    for (int64_t j = 0; j < count; j++) {
        float inverse;
        s->key_scale[j] = stage_row(keys, first + j, spec->size, query_codes(spec->size), s->stage, &inverse);
        pair_halves(s->stage, spec->size, inverse, s->keys + j * s->key_step);
    }
}

/* Values of a tile, two keys in a pair; returns the greatest scale, of which value_scale are parts. */
INLINE float code_values(const attention_spec *spec, const tile_state *s, rows_at values, int64_t first,
                         int64_t count)
{
    float most = 0, inverse[2];
    float *one = s->stage, *other = s->stage + s->value_step;
    memset(one, 0, (size_t)(2 * s->value_step) * sizeof(float));
    for (int64_t j = 0; j < count; j += 2) {
        s->value_scale[j] = stage_row(values, first + j, spec->value_size, VALUE_CODES, one, &inverse[0]);
        inverse[1] = s->value_scale[j + 1] = 0;
        if (j + 1 < count)
            s->value_scale[j + 1] =
                stage_row(values, first + j + 1, spec->value_size, VALUE_CODES, other, &inverse[1]);
        for (int64_t d = 0; d < spec->value_size; d += LANES)
            store_pairs(s->values + j / 2 * s->value_step + d,
                        join_pairs(round_lanes(load_lanes(one + d) * inverse[0]),
                                   round_lanes(load_lanes(other + d) * inverse[1])));
        for (int i = 0; i < 2; i++)
            most = s->value_scale[j + i] > most ? s->value_scale[j + i] : most;
    }
    for (int64_t j = 0; j < count; j++)
        s->value_scale[j] *= most > 0 ? WEIGHT_CODES / most : 0;
    return most;
}

/* The queries of an item, transposed. */
INLINE void code_queries(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                         const attention_item *item, const tile_state *s)
{
    int64_t half = half_of(spec->size), width = tile_width(spec);
    float *pairs = s->keys; /* of no use yet */
    memset(s->stage, 0, (size_t)width * sizeof(float));
    for (int64_t m = 0, panel; m < s->padded; m += panel) {
        panel = panel_rows(s, m);
        for (int64_t r = 0; r < panel; r += 16) {
            for (int64_t i = 0; i < 16; i++) {
                if (m + r + i < s->rows)
                    tile_query(spec, args, p, item, s, m + r + i, s->stage);
                float scale = code_scale(s->stage, spec->size, query_codes(spec->size));
                s->query_scale[m + r + i] = scale;
                pair_halves(s->stage, spec->size, inverse_scale(scale), pairs + i * width);
            }
            transpose_lines(pairs, width, half, s->query + m * half + r, panel);
        }
    }
}

/* scores[key][rows] = queries times keys. `vectors`: of the panel. Keys behind the last repeat it. */
INLINE void coded_scores(const float *query, const float *query_scale, const float *keys,
                         const float *key_scale, int64_t step, int64_t count, int64_t half, const int vectors,
                         float *scores)
{
    const int64_t rows = vectors * LANES;
    for (int64_t j = 0; j < count; j += PANEL_STEP) {
        const float *key[PANEL_STEP];
        vi32 sum[PANEL_STEP][PANEL_VECTORS];
        for (int k = 0; k < PANEL_STEP; k++) {
            key[k] = keys + min64(j + k, count - 1) * step;
            for (int v = 0; v < vectors; v++)
                sum[k][v] = (vi32){0};
        }
        for (int64_t d = 0; d < half; d++)
            for (int k = 0; k < PANEL_STEP; k++)
                for (int v = 0; v < vectors; v++)
                    sum[k][v] = dot_pairs(sum[k][v], load_pairs(query + d * rows + v * LANES),
                                          every_pair(key[k] + d));
        for (int k = 0; k < PANEL_STEP; k++)
            for (int v = 0; v < vectors; v++)
                store_lanes(scores + (j + k) * rows + v * LANES, __builtin_convertvector(sum[k][v], vf32)
                                                                     * load_lanes(query_scale + v * LANES)
                                                                     * key_scale[min64(j + k, count - 1)]);
    }
}

/* e^x of x at most 0 within 5e-6, which is finer than a code. */
INLINE f32x16 coarse_weight16(f32x16 x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, kept in the low bits */
    x = greater16(x, splat16(-87.0f));
    f32x16 shifted = x * 1.44269504f + magic;
    f32x16 r = x - (shifted - magic) * 0.693147181f;
    f32x16 p = splat16(0.0412775762f);
    p = p * r + 0.16753523f;
    p = p * r + 0.500051181f;
    p = p * (r * r) + r + 1.0f;
    return (f32x16)((i32x16)p + ((i32x16)shifted << 23));
}

/* Scores into codes of weights e^(score - top of the tile) times value_scale, in pairs, in place. shrink:
 * what former sums are times now; factor: what these codes are times. */
INLINE void coded_weights(float *scores, int64_t rows, int64_t count, const float *value_scale, float *top,
                          float *total, float *shrink, float *factor)
{
    const float magic = 12582912.0f;
    for (int64_t r = 0; r < rows; r += 16) {
        f32x16 most = load16(scores + r), sum = splat16(0), before = load16(top + r);
        for (int64_t j = 1; j < count; j++)
            most = greater16(load16(scores + j * rows + r), most);
        f32x16 finite = greater16(most, splat16(-3.40282347e38f));
        for (int64_t j = 0; j < count; j += 2) {
            f32x16 low = coarse_weight16(load16(scores + j * rows + r) - finite), high = splat16(0);
            if (j + 1 < count)
                high = coarse_weight16(load16(scores + (j + 1) * rows + r) - finite);
            sum += low + high;
            i32x16 codes = (i32x16)(low * value_scale[j] + magic) & 0xffff;
            codes |= (i32x16)(high * value_scale[j + 1 < count ? j + 1 : j] + magic) << 16;
            store16(scores + j / 2 * rows + r, (f32x16)codes);
        }
        f32x16 now = greater16(most, before), bound = greater16(now, splat16(-3.40282347e38f));
        f32x16 less = weight16(before - bound), here = weight16(most - bound);
        store16(top + r, now);
        store16(total + r, load16(total + r) * less + sum * here);
        store16(shrink + r, less);
        store16(factor + r, here);
    }
}

/* sums[column][rows] = sums * shrink + columns d .. d + columns of the values times the weights. */
INLINE void coded_columns(const float *weights, const float *values, int64_t step, int64_t count, int d,
                          const int columns, const int vectors, const float *shrink, const float *factor,
                          float *sums)
{
    const int64_t rows = vectors * LANES;
    vi32 sum[PANEL_STEP][PANEL_VECTORS];
    for (int c = 0; c < columns; c++)
        for (int v = 0; v < vectors; v++)
            sum[c][v] = (vi32){0};
    for (int64_t j = 0; j < (count + 1) / 2; j++)
        for (int c = 0; c < columns; c++)
            for (int v = 0; v < vectors; v++)
                sum[c][v] = dot_pairs(sum[c][v], load_pairs(weights + j * rows + v * LANES),
                                      every_pair(values + j * step + d + c));
    for (int c = 0; c < columns; c++)
        for (int v = 0; v < vectors; v++) {
            float *to = sums + (d + c) * rows + v * LANES;
            store_lanes(to, load_lanes(to) * load_lanes(shrink + v * LANES)
                                + __builtin_convertvector(sum[c][v], vf32) * load_lanes(factor + v * LANES));
        }
}

/* One panel with the keys of a tile that it sees. */
INLINE void coded_panel(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                        const attention_item *item, const tile_state *s, int64_t m, const int vectors,
                        int64_t tile, range seen, float greatest)
{
    const int64_t rows = vectors * LANES, count = seen.end - seen.begin, half = half_of(spec->size);
    float shrink[PANEL_ROWS], factor[PANEL_ROWS], *sums = s->sums + m * spec->value_size;
    const float *values = s->values + seen.begin / 2 * s->value_step;
    coded_scores(s->query + m * half, s->query_scale + m, s->keys + seen.begin * s->key_step,
                 s->key_scale + seen.begin, s->key_step, count, half, vectors, s->scores);
    tile_adjust(spec, args, p, item, s, m, rows, tile, seen);
    coded_weights(s->scores, rows, count, s->value_scale + seen.begin, s->top + m, s->total + m, shrink,
                  factor);
    for (int64_t r = 0; r < rows; r++)
        factor[r] *= greatest / WEIGHT_CODES;
    int d = 0;
    for (; d + PANEL_STEP <= spec->value_size; d += PANEL_STEP)
        coded_columns(s->scores, values, s->value_step, count, d, PANEL_STEP, vectors, shrink, factor, sums);
    for (; d < spec->value_size; d++)
        coded_columns(s->scores, values, s->value_step, count, d, 1, vectors, shrink, factor, sums);
}

INLINE void coded_item(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                       const attention_item *item, const tile_state *s, rows_at keys, rows_at values)
{
    code_queries(spec, args, p, item, s);
    for (int64_t tile = item->first; tile < item->last; tile += TILE_KEYS) {
        int64_t count = min64(TILE_KEYS, item->last - tile);
        code_keys(spec, s, keys, tile, count);
        float greatest = code_values(spec, s, values, tile, count);
        tile_bounds(spec, args, p, item, s, tile, count);
        for (int64_t m = 0, panel; m < s->padded; m += panel) {
            panel = panel_rows(s, m);
            range seen = {s->begin[m] & ~1, s->end[m + panel - 1]}; /* whole pairs */
            if (seen.begin >= seen.end)
                continue;
            switch (panel / LANES) {
#if LANE_BYTES == 64
            case 1: coded_panel(spec, args, p, item, s, m, 1, tile, seen, greatest); break;
            case 2: coded_panel(spec, args, p, item, s, m, 2, tile, seen, greatest); break;
#endif
            default: coded_panel(spec, args, p, item, s, m, PANEL_VECTORS, tile, seen, greatest);
            }
        }
    }
}

#endif

/* Attention of many query rows, as in prefill and encoders: tiles of keys, online softmax, in floats. */
#ifndef MIAOTUI_ATTENTION_TILES_H
#define MIAOTUI_ATTENTION_TILES_H

#include "attention_panels.h"

/* scores[key][rows] = queries times keys. `vectors`: of the panel. Keys behind the last repeat it. */
INLINE void tile_scores(const float *query, const float *keys, int64_t step, int64_t count, int size,
                        const int vectors, float *scores)
{
    const int64_t rows = vectors * LANES;
    for (int64_t j = 0; j < count; j += PANEL_STEP) {
        const float *key[PANEL_STEP];
        vf32 sum[PANEL_STEP][PANEL_VECTORS];
        for (int k = 0; k < PANEL_STEP; k++) {
            key[k] = keys + min64(j + k, count - 1) * step;
            for (int v = 0; v < vectors; v++)
                sum[k][v] = (vf32){0};
        }
        for (int d = 0; d < size; d++)
            for (int k = 0; k < PANEL_STEP; k++)
                for (int v = 0; v < vectors; v++)
                    sum[k][v] += load_lanes(query + d * rows + v * LANES) * key[k][d];
        for (int k = 0; k < PANEL_STEP; k++)
            for (int v = 0; v < vectors; v++)
                store_lanes(scores + (j + k) * rows + v * LANES, sum[k][v]);
    }
}

/* sums[column][rows] = sums * shrink + columns d .. d + columns of the values times the weights. */
INLINE void tile_columns(const float *weights, const float *values, int64_t step, int64_t count, int d,
                         const int columns, const int vectors, const float *shrink, float *sums)
{
    const int64_t rows = vectors * LANES;
    vf32 sum[PANEL_STEP][PANEL_VECTORS];
    for (int c = 0; c < columns; c++)
        for (int v = 0; v < vectors; v++)
            sum[c][v] = load_lanes(sums + (d + c) * rows + v * LANES) * load_lanes(shrink + v * LANES);
    for (int64_t j = 0; j < count; j++)
        for (int c = 0; c < columns; c++)
            for (int v = 0; v < vectors; v++)
                sum[c][v] += load_lanes(weights + j * rows + v * LANES) * values[j * step + d + c];
    for (int c = 0; c < columns; c++)
        for (int v = 0; v < vectors; v++)
            store_lanes(sums + (d + c) * rows + v * LANES, sum[c][v]);
}

INLINE void tile_values(const float *weights, const float *values, int64_t step, int64_t count, int size,
                        const int vectors, const float *shrink, float *sums)
{
    int d = 0;
    for (; d + PANEL_STEP <= size; d += PANEL_STEP)
        tile_columns(weights, values, step, count, d, PANEL_STEP, vectors, shrink, sums);
    for (; d < size; d++)
        tile_columns(weights, values, step, count, d, 1, vectors, shrink, sums);
}

/* Scores into weights e^(score - top) with the greatest score so far; shrink: what former sums are times now.
 */
INLINE void tile_weights(float *scores, int64_t rows, int64_t count, float *top, float *total, float *shrink)
{
    for (int64_t r = 0; r < rows; r += 16) {
        f32x16 before = load16(top + r), most = before, sum = splat16(0);
        for (int64_t j = 0; j < count; j++)
            most = greater16(load16(scores + j * rows + r), most);
        f32x16 finite = select16(most == -__builtin_inff(), splat16(0), most), less = exp16(before - finite);
        for (int64_t j = 0; j < count; j++) {
            f32x16 weight = weight16(load16(scores + j * rows + r) - finite);
            store16(scores + j * rows + r, weight);
            sum += weight;
        }
        store16(top + r, most);
        store16(total + r, load16(total + r) * less + sum);
        store16(shrink + r, less);
    }
}

/* One panel with the keys of a tile that it sees. */
INLINE void panel_tile(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                       const attention_item *item, const tile_state *s, int64_t m, const int vectors,
                       int64_t tile, range seen, const float *keys, const float *values)
{
    const int64_t rows = vectors * LANES, count = seen.end - seen.begin;
    float shrink[PANEL_ROWS];
    tile_scores(s->query + m * spec->size, keys + seen.begin * s->key_step, s->key_step, count, spec->size,
                vectors, s->scores);
    tile_adjust(spec, args, p, item, s, m, rows, tile, seen);
    tile_weights(s->scores, rows, count, s->top + m, s->total + m, shrink);
    tile_values(s->scores, values + seen.begin * s->value_step, s->value_step, count, spec->value_size,
                vectors, shrink, s->sums + m * spec->value_size);
}

/* The queries of an item, transposed. */
INLINE void tile_queries(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                         const attention_item *item, const tile_state *s)
{
    int64_t width = tile_width(spec);
    for (int64_t m = 0, panel; m < s->padded; m += panel) {
        panel = panel_rows(s, m);
        for (int64_t r = 0; r < panel; r += 16) {
            for (int64_t i = 0; i < 16; i++)
                if (m + r + i < s->rows)
                    tile_query(spec, args, p, item, s, m + r + i, s->stage + i * width);
                else
                    memset(s->stage + i * width, 0, (size_t)spec->size * sizeof(float));
            transpose_lines(s->stage, width, spec->size, s->query + m * spec->size + r, panel);
        }
    }
}

/* Rows of a tile as floats: where they lie, or widened into `memory`. */
INLINE const float *tile_rows(rows_at rows, int64_t first, int64_t count, int size, float *memory,
                              int64_t *step)
{
    const unsigned char *at = rows.first + first * rows.step;
    if (rows.kind == CACHE_F32) {
        *step = rows.step / (int64_t)sizeof(float);
        return (const float *)at;
    }
    for (int64_t j = 0; j < count; j++)
        read_row(rows.kind, at + j * rows.step, size, memory + j * *step);
    return memory;
}

INLINE void tile_item(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                      const attention_item *item, tile_state *s, rows_at keys, rows_at values)
{
    tile_queries(spec, args, p, item, s);
    for (int64_t tile = item->first; tile < item->last; tile += TILE_KEYS) {
        int64_t count = min64(TILE_KEYS, item->last - tile);
        const float *k = tile_rows(keys, tile, count, spec->size, s->keys, &s->key_step);
        const float *v = tile_rows(values, tile, count, spec->value_size, s->values, &s->value_step);
        tile_bounds(spec, args, p, item, s, tile, count);
        for (int64_t m = 0, panel; m < s->padded; m += panel) {
            panel = panel_rows(s, m);
            range seen = {s->begin[m], s->end[m + panel - 1]};
            if (seen.begin >= seen.end)
                continue;
            switch (panel / LANES) {
#if LANE_BYTES == 64
            case 1: panel_tile(spec, args, p, item, s, m, 1, tile, seen, k, v); break;
            case 2: panel_tile(spec, args, p, item, s, m, 2, tile, seen, k, v); break;
#endif
            default: panel_tile(spec, args, p, item, s, m, PANEL_VECTORS, tile, seen, k, v);
            }
        }
    }
}

#endif

/* Attention of many query rows, as in prefill and encoders: tiles of keys, online softmax, queries in the lanes.
 *
 * Query rows lie in panels of up to PANEL_VECTORS registers, transposed: [size][panel rows]. So scores are
 * [keys][panel rows] and sums [value size][panel rows]: keys and values are read as they are, one number at a time
 * for all lanes, and the softmax needs nothing across lanes. */
#ifndef MIAOTUI_ATTENTION_TILES_H
#define MIAOTUI_ATTENTION_TILES_H

#include "attention_sums.h"

/* Registers of a panel, and keys (or columns of values) multiplied with it at once: their product in accumulators. */
#if LANE_BYTES == 64
enum { PANEL_VECTORS = 3, PANEL_STEP = 8 };
#elif LANE_BYTES == 32
enum { PANEL_VECTORS = 2, PANEL_STEP = 4 };
#elif defined(__aarch64__)
enum { PANEL_VECTORS = 4, PANEL_STEP = 4 };
#else
enum { PANEL_VECTORS = 4, PANEL_STEP = 2 };
#endif
enum { PANEL_ROWS = PANEL_VECTORS * LANES };

/* One item's state: rows of panels behind each other, each with its own [..][panel rows] of everything. */
typedef struct tile_state {
    float *query;        /* [size][rows] of each panel */
    float *sums;         /* [value size][rows] of each panel */
    float *top, *total;  /* [rows] */
    float *scores;       /* [TILE_KEYS][PANEL_ROWS] */
    float *keys, *values; /* [TILE_KEYS][size], of a cache that is not float */
    float *stage;        /* [16][size or value size] */
    int32_t *begin, *end; /* keys that a row sees, counted from the tile's first */
} tile_state;

INLINE int64_t tile_width(const attention_spec *spec)
{
    return round_up(spec->size > spec->value_size ? spec->size : spec->value_size, 16);
}

INLINE int64_t tile_floats(const attention_spec *spec, int64_t rows)
{
    int64_t padded = round_up(rows, 16), width = tile_width(spec);
    return padded * (spec->size + spec->value_size + 4) + TILE_KEYS * (PANEL_ROWS + 2 * width) + 16 * width + 64;
}

INLINE tile_state tile_memory(const attention_spec *spec, float *at, int64_t rows)
{
    int64_t padded = round_up(rows, 16), width = tile_width(spec);
    tile_state s;
    s.query = at;
    s.sums = s.query + padded * spec->size;
    s.top = s.sums + padded * spec->value_size;
    s.total = s.top + padded;
    s.begin = (int32_t *)(s.total + padded);
    s.end = s.begin + padded;
    s.scores = (float *)(s.end + padded);
    s.keys = s.scores + TILE_KEYS * PANEL_ROWS;
    s.values = s.keys + TILE_KEYS * width;
    s.stage = s.values + TILE_KEYS * width;
    return s;
}

/* Rows of the panel that begins at row m of `padded`. */
INLINE int64_t panel_rows(int64_t padded, int64_t m)
{
    int64_t panels = (padded + PANEL_ROWS - 1) / PANEL_ROWS, each = round_up((padded + panels - 1) / panels, 16);
    return min64(each, padded - m);
}

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

/* Add the bias to scores[count keys][rows]; `m`: the panel's first row, `first`: the tile's first key. */
INLINE void tile_bias(const attention_args *args, const attention_plan *p, const attention_item *item, int64_t m,
                      int64_t rows, int64_t last_row, int64_t first, int64_t count, float *scores)
{
    int64_t key = args->bias_key;
    const float *bias = args->bias + offset_at(args->bias_at, item->row, item->head * p->group, 0) + first * key;
    if (!args->bias_at.token && (!args->bias_at.head || p->group == 1)) {
        for (int64_t j = 0; j < count; j++)
            for (int64_t r = 0; r < rows; r += LANES)
                store_lanes(scores + j * rows + r, load_lanes(scores + j * rows + r) + bias[j * key]);
        return;
    }
    for (int64_t r = 0; r < rows; r++) {
        int64_t row = min64(m + r, last_row), token = item->begin + row / p->group;
        const float *line = bias + row % p->group * args->bias_at.head + token * args->bias_at.token;
        for (int64_t j = 0; j < count; j++)
            scores[j * rows + r] += line[j * key];
    }
}

/* -inf where a row does not see a key. begin, end: by row, counted from the tile's first key. */
INLINE void tile_mask(const int32_t *begin, const int32_t *end, int64_t rows, int64_t count, float *scores)
{
    for (int64_t r = 0; r < rows; r += LANES) {
        vi32 from, to;
        memcpy(&from, begin + r, sizeof from);
        memcpy(&to, end + r, sizeof to);
        for (int64_t j = 0; j < count; j++) {
            vi32 at = (vi32){0} + (int32_t)j, seen = (at >= from) & (at < to);
            vi32 bits = (vi32)load_lanes(scores + j * rows + r);
            store_lanes(scores + j * rows + r, (vf32)((bits & seen) | (~seen & (int32_t)0xff800000)));
        }
    }
}

/* Scores into weights e^(score - top) with the greatest score so far; shrink: what former sums are times now. */
INLINE void tile_weights(float *scores, int64_t rows, int64_t count, float *top, float *total, float *shrink)
{
    for (int64_t r = 0; r < rows; r += 16) {
        f32x16 before = load16(top + r), most = before, sum = splat16(0);
        for (int64_t j = 0; j < count; j++)
            most = max16(load16(scores + j * rows + r), most);
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

/* One panel with the keys `from` to `to` of a tile. */
INLINE void panel_tile(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                       const attention_item *item, const tile_state *s, int64_t m, const int vectors, int64_t tile,
                       int64_t from, int64_t to, int masked, const float *keys, int64_t key_step, const float *values,
                       int64_t value_step)
{
    const int64_t rows = vectors * LANES, count = to - from;
    float shrink[PANEL_ROWS], *scores = s->scores;
    tile_scores(s->query + m * spec->size, keys + from * key_step, key_step, count, spec->size, vectors, scores);
    if (spec->softcap != 0)
        for (int64_t i = 0; i < count * rows; i += 16)
            store16(scores + i, tanh16(load16(scores + i) * (1 / spec->softcap)) * spec->softcap);
    if (args->bias)
        tile_bias(args, p, item, m, rows, (item->end - item->begin) * p->group - 1, tile + from, count, scores);
    if (masked) {
        int32_t begin[PANEL_ROWS], end[PANEL_ROWS];
        for (int64_t r = 0; r < rows; r++) {
            begin[r] = s->begin[m + r] - (int32_t)from;
            end[r] = s->end[m + r] - (int32_t)from;
        }
        tile_mask(begin, end, rows, count, scores);
    }
    tile_weights(scores, rows, count, s->top + m, s->total + m, shrink);
    tile_values(scores, values + from * value_step, value_step, count, spec->value_size, vectors, shrink,
                s->sums + m * spec->value_size);
}

/* The queries of an item, normed, rotated, scaled, transposed; sums at nothing. */
INLINE void tile_queries(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                         const attention_item *item, const tile_state *s, int64_t rows)
{
    int64_t padded = round_up(rows, 16), size = spec->size;
    float scale = scale_of(spec);
    for (int64_t m = 0, panel; m < padded; m += panel) {
        panel = panel_rows(padded, m);
        for (int64_t r = 0; r < panel; r++) {
            float *to = s->query + m * size + r;
            if (m + r < rows) {
                int64_t token = item->begin + (m + r) / p->group, head = item->head * p->group + (m + r) % p->group;
                turn_row(spec, args, args->query_norm,
                         args->query + offset_at(args->query_at, item->row, head, token), item->row, token, scale,
                         s->stage);
                for (int64_t d = 0; d < size; d++)
                    to[d * panel] = s->stage[d];
            } else {
                for (int64_t d = 0; d < size; d++)
                    to[d * panel] = 0;
            }
        }
    }
    memset(s->sums, 0, (size_t)(padded * spec->value_size) * sizeof(float));
    memset(s->total, 0, (size_t)padded * sizeof(float));
    for (int64_t m = 0; m < padded; m++)
        s->top[m] = -__builtin_inff();
}

/* The output rows, or the partial sums of an item that shares them with others. */
INLINE void tile_output(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                        const attention_item *item, const tile_state *s, int64_t rows, float *partial)
{
    int64_t padded = round_up(rows, 16), size = spec->value_size;
    partial_sums part = sums_at(partial, rows);
    for (int64_t m = 0, panel; m < padded; m += panel) {
        panel = panel_rows(padded, m);
        for (int64_t r = 0; r < min64(panel, rows - m); r++) {
            const float *from = s->sums + m * size + r;
            int split = item->chunks > 1;
            float *y = split ? part.values + (m + r) * size : output_row(args, p, item, m + r);
            float factor = split ? 1 : inverse_of(s->total[m + r]);
            for (int64_t d = 0; d < size; d++)
                y[d] = from[d * panel] * factor;
            if (split) {
                part.top[m + r] = s->top[m + r];
                part.total[m + r] = s->total[m + r];
            }
        }
    }
}

/* Rows of a tile as floats: where they lie, or widened into `memory`. */
INLINE const float *tile_rows(rows_at rows, int64_t first, int64_t count, int size, float *memory, int64_t *step)
{
    const unsigned char *at = rows.first + first * rows.step;
    if (rows.kind == CACHE_F32) {
        *step = rows.step / (int64_t)sizeof(float);
        return (const float *)at;
    }
    *step = round_up(size, 16);
    for (int64_t j = 0; j < count; j++)
        read_row(rows.kind, at + j * rows.step, size, memory + j * *step);
    return memory;
}

INLINE void tile_item(worker *w, const attention_spec *spec, const attention_args *args, const attention_plan *p,
                      const attention_item *item, float *partial)
{
    int64_t rows = (item->end - item->begin) * p->group, padded = round_up(rows, 16);
    int64_t base = base_of(spec, args, item->row);
    tile_state s = tile_memory(spec, (float *)w->scratch, plan_rows(p));
    if (spec->cache != CACHE_NONE && p->blocks == 1)
        write_new_rows(spec, args, item->row, item->head, max64(item->first - base, 0), item->last - base, s.stage);
    tile_queries(spec, args, p, item, &s, rows);
    rows_at keys = keys_of(w, spec, args, item->row, item->head);
    rows_at values = values_of(spec, args, item->row, item->head);
    for (int64_t tile = item->first; tile < item->last; tile += TILE_KEYS) {
        int64_t count = min64(TILE_KEYS, item->last - tile), key_step, value_step;
        const float *k = tile_rows(keys, tile, count, spec->size, s.keys, &key_step);
        const float *v = tile_rows(values, tile, count, spec->value_size, s.values, &value_step);
        for (int64_t m = 0; m < padded; m++) {
            range seen = seen_keys(spec, args, base + item->begin + min64(m, rows - 1) / p->group);
            s.begin[m] = (int32_t)max64(min64(seen.begin - tile, TILE_KEYS), 0);
            s.end[m] = (int32_t)max64(min64(seen.end - tile, count), 0);
        }
        for (int64_t m = 0, panel; m < padded; m += panel) {
            panel = panel_rows(padded, m);
            /* Bounds grow with the row. */
            int64_t from = s.begin[m], to = s.end[m + panel - 1];
            int masked = s.begin[m + panel - 1] > from || s.end[m] < to;
            if (from >= to)
                continue;
            switch (panel / LANES) {
#if LANE_BYTES == 64
            case 1:
                panel_tile(spec, args, p, item, &s, m, 1, tile, from, to, masked, k, key_step, v, value_step);
                break;
            case 2:
                panel_tile(spec, args, p, item, &s, m, 2, tile, from, to, masked, k, key_step, v, value_step);
                break;
#endif
            default:
                panel_tile(spec, args, p, item, &s, m, PANEL_VECTORS, tile, from, to, masked, k, key_step, v,
                           value_step);
            }
        }
    }
    tile_output(spec, args, p, item, &s, rows, partial);
}

#endif

/* Query rows in panels: what attention by tiles of keys needs, in floats or in codes.
 *
 * Query rows lie in panels of up to PANEL_VECTORS registers, transposed: [size][panel rows]. So scores are
 * [keys][panel rows] and sums [value size][panel rows]: keys and values are read as they are, one number at a
 * time for all lanes, and the softmax needs nothing across lanes. */
#ifndef MIAOTUI_ATTENTION_PANELS_H
#define MIAOTUI_ATTENTION_PANELS_H

#include "attention_sums.h"

/* Registers of a panel, and keys (or columns of values) it is multiplied with at once: the accumulators. */
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

/* One item: its rows, padded to 16; panels lie behind each other, each [..][panel rows]. Of codes, a float
 * has the place of a pair. */
typedef struct tile_state {
    int64_t rows, padded;
    float *query, *query_scale; /* [size][rows], [rows] */
    float *sums, *top, *total;  /* [value size][rows], [rows], [rows] */
    int32_t *begin, *end;       /* [rows]: the keys that a row sees, counted from the tile's first */
    float *scores;              /* [TILE_KEYS][PANEL_ROWS] */
    float *keys, *key_scale;    /* [TILE_KEYS][key_step], [TILE_KEYS] */
    float *values, *value_scale;
    int64_t key_step, value_step;
    float *stage; /* [16][tile_width] */
} tile_state;

/* A row with zeros behind it, for codes of pairs. */
INLINE int64_t tile_width(const attention_spec *spec)
{
    return round_up(spec->size > spec->value_size ? spec->size : spec->value_size, 16) + 32;
}

INLINE int64_t tile_floats(const attention_spec *spec, int64_t rows)
{
    int64_t padded = round_up(rows, 16), width = tile_width(spec);
    return padded * (spec->size + spec->value_size + 6) + TILE_KEYS * (PANEL_ROWS + 2 * width + 2)
           + 16 * width;
}

INLINE tile_state tile_memory(const attention_spec *spec, float *at, int64_t rows)
{
    int64_t width = tile_width(spec);
    tile_state s = {.rows = rows, .padded = round_up(rows, 16)};
    s.scores = at;
    s.query = s.scores + TILE_KEYS * PANEL_ROWS;
    s.sums = s.query + s.padded * spec->size;
    s.query_scale = s.sums + s.padded * spec->value_size;
    s.top = s.query_scale + s.padded;
    s.total = s.top + s.padded;
    s.begin = (int32_t *)(s.total + s.padded);
    s.end = s.begin + s.padded;
    s.keys = (float *)(s.end + s.padded);
    s.values = s.keys + TILE_KEYS * width;
    s.key_scale = s.values + TILE_KEYS * width;
    s.value_scale = s.key_scale + TILE_KEYS;
    s.stage = s.value_scale + TILE_KEYS;
    s.key_step = s.value_step = width;
    return s;
}

/* Rows of the panel that begins at row m. */
INLINE int64_t panel_rows(const tile_state *s, int64_t m)
{
    int64_t panels = (s->padded + PANEL_ROWS - 1) / PANEL_ROWS;
    return min64(round_up((s->padded + panels - 1) / panels, 16), s->padded - m);
}

/* Sums at nothing. */
INLINE void tile_begin(const attention_spec *spec, const tile_state *s)
{
    memset(s->sums, 0, (size_t)(s->padded * spec->value_size) * sizeof(float));
    memset(s->total, 0, (size_t)s->padded * sizeof(float));
    for (int64_t m = 0; m < s->padded; m++)
        s->top[m] = -__builtin_inff();
}

/* v[i][j] into v[j][i]. */
INLINE void transpose16(f32x16 *v)
{
#if LANE_BYTES == 64
    f32x16 columns[4][4]; /* of rows 4 i ..: numbers k, 4 + k, 8 + k, 12 + k */
    for (int i = 0; i < 4; i++) {
        const f32x16 *r = v + 4 * i;
        f32x16 low[2], high[2];
        for (int h = 0; h < 2; h++) {
            low[h] = __builtin_shufflevector(r[2 * h], r[2 * h + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25,
                                             12, 28, 13, 29);
            high[h] = __builtin_shufflevector(r[2 * h], r[2 * h + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11,
                                              27, 14, 30, 15, 31);
        }
        for (int h = 0; h < 2; h++) {
            const f32x16 *from = h ? high : low;
            columns[i][2 * h] = __builtin_shufflevector(from[0], from[1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9,
                                                        24, 25, 12, 13, 28, 29);
            columns[i][2 * h + 1] = __builtin_shufflevector(from[0], from[1], 2, 3, 18, 19, 6, 7, 22, 23, 10,
                                                            11, 26, 27, 14, 15, 30, 31);
        }
    }
    for (int k = 0; k < 4; k++) {
        f32x16 even[2], odd[2];
        for (int h = 0; h < 2; h++) {
            f32x16 a = columns[2 * h][k], b = columns[2 * h + 1][k];
            even[h] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
            odd[h] =
                __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        }
        for (int h = 0; h < 2; h++) {
            const f32x16 *from = h ? odd : even;
            v[4 * h + k] = __builtin_shufflevector(from[0], from[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19,
                                                   24, 25, 26, 27);
            v[8 + 4 * h + k] = __builtin_shufflevector(from[0], from[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21,
                                                       22, 23, 28, 29, 30, 31);
        }
    }
#else
    float lanes[16][16], turned[16][16];
    memcpy(lanes, v, sizeof lanes);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++)
            turned[j][i] = lanes[i][j];
    memcpy(v, turned, sizeof turned);
#endif
}

/* `count` lines of 16 floats, `from_step` apart, into 16 lines of `count`, `to_step` apart. */
INLINE void transpose_lines(const float *from, int64_t from_step, int64_t count, float *to, int64_t to_step)
{
    for (int64_t i = 0; i < count; i += 16) {
        f32x16 v[16];
        for (int k = 0; k < 16; k++)
            v[k] = load16(from + k * from_step + i);
        transpose16(v);
        for (int k = 0; k < 16; k++)
            if (i + k < count)
                store16(to + (i + k) * to_step, v[k]);
    }
}

/* Query row m, normed, rotated and scaled, into `to`; and the row some further on towards the caches. */
INLINE void tile_query(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                       const attention_item *item, const tile_state *s, int64_t m, float *to)
{
    enum { AHEAD = 8 };
    int64_t token = item->begin + m / p->group, head = item->head * p->group + m % p->group;
    int64_t later = item->begin + min64(m + AHEAD, s->rows - 1) / p->group;
    const float *query = args->query + offset_at(args->query_at, item->row, head, token);
    const float *next = args->query + offset_at(args->query_at, item->row, head, later);
    for (int i = 0; i < spec->size; i += 16)
        __builtin_prefetch(next + i);
    turn_row(spec, args, args->query_norm, query, item->row, token, scale_of(spec), to);
}

/* What each row sees of the `count` keys of a tile. */
INLINE void tile_bounds(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                        const attention_item *item, const tile_state *s, int64_t tile, int64_t count)
{
    int64_t place = base_of(spec, args, item->row) + item->begin;
    for (int64_t m = 0; m < s->padded; m++) {
        range seen = seen_keys(spec, args, place + min64(m, s->rows - 1) / p->group);
        s->begin[m] = (int32_t)max64(min64(seen.begin - tile, TILE_KEYS), 0);
        s->end[m] = (int32_t)max64(min64(seen.end - tile, count), 0);
    }
}

/* Add the bias to scores[count keys][rows]; `m`: the panel's first row, `first`: the tile's first key. */
INLINE void tile_bias(const attention_args *args, const attention_plan *p, const attention_item *item,
                      const tile_state *s, int64_t m, int64_t rows, int64_t first, int64_t count)
{
    int64_t key = args->bias_key;
    float *scores = s->scores;
    const float *bias =
        args->bias + offset_at(args->bias_at, item->row, item->head * p->group, 0) + first * key;
    if (!args->bias_at.token && (!args->bias_at.head || p->group == 1)) {
        for (int64_t j = 0; j < count; j++)
            for (int64_t r = 0; r < rows; r += LANES)
                store_lanes(scores + j * rows + r, load_lanes(scores + j * rows + r) + bias[j * key]);
        return;
    }
    for (int64_t r = 0; r < rows; r++) {
        int64_t row = min64(m + r, s->rows - 1), token = item->begin + row / p->group;
        const float *line = bias + row % p->group * args->bias_at.head + token * args->bias_at.token;
        for (int64_t j = 0; j < count; j++)
            scores[j * rows + r] += line[j * key];
    }
}

/* -inf where a row does not see a key; begin, end: by row, `first`: where the `count` keys begin. */
INLINE void tile_mask(const int32_t *begin, const int32_t *end, int64_t rows, int64_t first, int64_t count,
                      float *scores)
{
    for (int64_t r = 0; r < rows; r += LANES) {
        vi32 from, to;
        memcpy(&from, begin + r, sizeof from);
        memcpy(&to, end + r, sizeof to);
        for (int64_t j = 0; j < count; j++) {
            vi32 at = (vi32){0} + (int32_t)(first + j), seen = (at >= from) & (at < to);
            vi32 bits = (vi32)load_lanes(scores + j * rows + r);
            store_lanes(scores + j * rows + r, (vf32)((bits & seen) | (~seen & (int32_t)0xff800000)));
        }
    }
}

/* Soft cap, bias and sight, on the scores of `count` keys behind `from` of a tile. */
INLINE void tile_adjust(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                        const attention_item *item, const tile_state *s, int64_t m, int64_t rows,
                        int64_t tile, range keys)
{
    int64_t count = keys.end - keys.begin;
    if (spec->softcap != 0)
        for (int64_t i = 0; i < count * rows; i += 16)
            store16(s->scores + i, tanh16(load16(s->scores + i) * (1 / spec->softcap)) * spec->softcap);
    if (args->bias)
        tile_bias(args, p, item, s, m, rows, tile + keys.begin, count);
    /* Bounds grow with the row. */
    if (s->begin[m + rows - 1] > keys.begin || s->end[m] < keys.end)
        tile_mask(s->begin + m, s->end + m, rows, keys.begin, count, s->scores);
}

/* The output rows, or the partial sums of an item that shares them with others. */
INLINE void tile_output(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                        const attention_item *item, const tile_state *s, float *partial)
{
    int64_t size = spec->value_size, split = item->chunks > 1;
    partial_sums part = sums_at(partial, s->rows);
    if (split)
        for (int64_t m = 0; m < s->rows; m++) {
            part.top[m] = s->top[m];
            part.total[m] = s->total[m];
        }
    for (int64_t m = 0, panel; m < s->padded; m += panel) {
        panel = panel_rows(s, m);
        for (int64_t r = 0; r < panel; r += 16) {
            float *rows[16], factor[16];
            for (int64_t i = 0; i < 16; i++) {
                int64_t row = min64(m + r + i, s->rows - 1);
                rows[i] = split ? part.values + row * size : output_row(args, p, item, row);
                factor[i] = split ? 1 : inverse_of(s->total[row]);
            }
            const float *from = s->sums + m * size + r;
            int64_t here = min64(16, s->rows - m - r), d = 0;
            for (; d + 16 <= size; d += 16) {
                f32x16 v[16];
                for (int64_t i = 0; i < 16; i++)
                    v[i] = load16(from + (d + i) * panel);
                transpose16(v);
                for (int64_t i = 0; i < here; i++)
                    store16(rows[i] + d, v[i] * factor[i]);
            }
            for (; d < size; d++)
                for (int64_t i = 0; i < here; i++)
                    rows[i][d] = from[d * panel + i] * factor[i];
        }
    }
}

#endif

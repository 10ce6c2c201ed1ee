/* A linear layer with all that is fused around it: norm, activation, gate, bias, residual (miaotui Linear). */
#ifndef MIAOTUI_LINEAR_H
#define MIAOTUI_LINEAR_H

#include "linear_spec.h"
#include "linear_store.h"
#include "norm.h"
#include "pool.h"
#include "quantize.h"

/* What linear_float.h and linear_int.h give: the outputs of `tiles` of part `p` for the `rows` of the batch, each
 * through store_tile() or store_gated(). Of a gated part, tile i is gate tile i and up tile i, which lie behind
 * each other. x: the normed rows, x_stride floats apart; prepared: what prepare_row() made of all rows.
 *
 * INLINE void float_tiles(const linear_spec *spec, const linear_args *args, int p, const float *x,
 *                         int64_t x_stride, range rows, range tiles);
 * INLINE void int_tiles(const linear_spec *spec, const linear_args *args, int p, const unsigned char *prepared,
 *                       range rows, range tiles);
 *
 * One row of a packed weight as floats (an embedding that shares its memory with the output layer):
 * INLINE void unpack_row_float(const linear_part *part, int columns, const unsigned char *weight, int64_t row,
 *                              float *y);
 * INLINE void unpack_row_int(...);
 */
#if __has_include("linear_float.h")
#include "linear_float.h"
#endif
#include "linear_int.h"

/* Up to this many rows every worker prepares all of them for itself, which costs less than a barrier. */
enum { PREPARED_ALONE = 2 };

/* Rows that are multiplied with a tile before the next one: their codes stay in the second-level cache. */
enum { CACHED_BYTES = 256 << 10 };

INLINE int64_t row_bytes(const linear_spec *spec)
{
    if (is_int(spec->part[0].format))
        return prepared_bytes(spec->columns);
    return spec->norm == NORM_NONE ? 0 : (spec->columns + TILE - 1) / TILE * TILE * (int64_t)sizeof(float);
}

INLINE size_t linear_worker_bytes(const linear_spec *spec, int64_t count)
{
    int64_t normed = (spec->columns + CODES - 1) / CODES * CODES * (int64_t)sizeof(float);
    return (size_t)(normed + min64(count, PREPARED_ALONE) * row_bytes(spec) + 64);
}

INLINE size_t linear_shared_bytes(const linear_spec *spec, int64_t count)
{
    return count <= PREPARED_ALONE ? 0 : (size_t)(count * row_bytes(spec) + 64);
}

/* Norm, then integer codes if the weights are integers, of `rows`; `normed`: room for one row. */
INLINE void prepare_rows(const linear_spec *spec, const linear_args *args, range rows, float *normed,
                         unsigned char *prepared)
{
    const int quantized = is_int(spec->part[0].format);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const float *x = args->x + r * args->x_stride;
        float *y = quantized ? normed : (float *)(prepared + r * row_bytes(spec));
        if (spec->norm != NORM_NONE)
            norm_row(spec->norm, x, y, spec->columns, args->norm_scale, args->norm_bias, spec->epsilon);
        if (quantized)
            quantize_row(spec->norm == NORM_NONE ? x : y, spec->columns, r, args->count, prepared);
    }
}

INLINE void linear_tiles(const linear_spec *spec, const linear_args *args, int p, const unsigned char *prepared,
                         range rows, range tiles)
{
    if (is_int(spec->part[0].format)) {
        int_tiles(spec, args, p, prepared, rows, tiles);
    } else {
#ifdef MIAOTUI_LINEAR_FLOAT_H
        int in_place = spec->norm == NORM_NONE;
        float_tiles(spec, args, p, in_place ? args->x : (const float *)prepared,
                    in_place ? args->x_stride : row_bytes(spec) / (int64_t)sizeof(float), rows, tiles);
#endif
    }
}

/* All workers call it together; it ends without a barrier: the emitted code sets one behind it.
 *
 * The work is a grid of tiles and blocks of rows, cut into one stretch for each worker. A stretch goes through the
 * rows block by block, so that a block's codes are read from the cache for every tile. */
INLINE void linear(worker *w, const linear_spec *spec, const linear_args *args)
{
    const int64_t count = args->count;
    if (count <= 0)
        return;
    const int quantized = is_int(spec->part[0].format);
    float *normed = (float *)w->scratch;
    unsigned char *prepared = w->scratch + linear_worker_bytes(spec, 0) / 64 * 64;
    if (quantized || spec->norm != NORM_NONE) {
        range rows = {0, count};
        if (count > PREPARED_ALONE) {
            prepared = w->shared;
            rows = share(w, count, ROW_GROUP);
        }
        prepare_rows(spec, args, rows, normed, prepared);
        if (count > PREPARED_ALONE)
            barrier(w);
    }
    int64_t tiles = 0;
    for (int p = 0; p < spec->parts; p++)
        tiles += tiles_of(&spec->part[p]);
    const int64_t bytes = quantized ? prepared_bytes(spec->columns) : spec->columns * (int64_t)sizeof(float);
    const int64_t block = max64(ROW_GROUP, min64(count, CACHED_BYTES / bytes) / ROW_GROUP * ROW_GROUP);
    const int64_t blocks = (count + block - 1) / block;
    const range part = share(w, tiles * blocks, 1);
    for (int64_t b = 0; b < blocks; b++) {
        range rows = {b * block, min64(count, (b + 1) * block)};
        range mine = {(part.begin - b + blocks - 1) / blocks, (part.end - b + blocks - 1) / blocks};
        int64_t first = 0;
        for (int p = 0; p < spec->parts; p++) {
            int64_t own = tiles_of(&spec->part[p]);
            range own_tiles = {max64(mine.begin - first, 0), min64(mine.end - first, own)};
            if (own_tiles.begin < own_tiles.end)
                linear_tiles(spec, args, p, prepared, rows, own_tiles);
            first += own;
        }
    }
}

/* Row `row` of a packed weight as floats. */
INLINE void unpack_row(const linear_part *part, int columns, const unsigned char *weight, int64_t row, float *y)
{
    if (is_int(part->format)) {
        unpack_row_int(part, columns, weight, row, y);
    } else {
#ifdef MIAOTUI_LINEAR_FLOAT_H
        unpack_row_float(part, columns, weight, row, y);
#endif
    }
}

#endif

/* A linear layer with all that is fused around it: norm, activation, gate, bias, residual (miaotui Linear). */
#ifndef MIAOTUI_LINEAR_H
#define MIAOTUI_LINEAR_H

#include "linear_spec.h"
#include "linear_store.h"
#include "norm.h"
#include "pool.h"
#include "quantize.h"

/* What linear_float_tiles.h and linear_int.h give: the outputs of `tiles` of part `p` for the `rows` of the batch,
 * each through store_tile() or store_gated(). Of a gated part, tile i is gate tile i and up tile i, which lie behind
 * each other. prepared: what quantize_row() or prepare_float_row() made of all rows.
 *
 * INLINE void float_tiles(const linear_spec *spec, const linear_args *args, int p, const unsigned char *prepared,
 *                         range rows, range tiles);
 * INLINE void int_tiles(const linear_spec *spec, const linear_args *args, int p, const unsigned char *prepared,
 *                       range rows, range tiles);
 *
 * One row of a packed weight as floats (an embedding that shares its memory with the output layer):
 * INLINE void unpack_row_float(const linear_part *part, int columns, const unsigned char *weight, int64_t row,
 *                              float *y);
 * INLINE void unpack_row_int(...);
 */
#include "linear_float_tiles.h"
#include "linear_int.h"

/* Up to this many rows every worker prepares all of them for itself, which costs less than a barrier. */
enum { PREPARED_ALONE = 2 };

/* Rows that are multiplied with a tile before the next one: their codes stay in the second-level cache. */
enum { CACHED_BYTES = 512 << 10 };

INLINE int64_t row_bytes(const linear_spec *spec)
{
    return is_int(spec->part[0].format) ? prepared_bytes(spec->columns) : float_row_bytes(spec->columns);
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
        if (spec->norm != NORM_NONE) {
            norm_row(spec->norm, x, normed, spec->columns, args->norm_scale, args->norm_bias, spec->epsilon);
            x = normed;
        }
        if (quantized)
            quantize_row(x, spec->columns, r, args->count, prepared);
        else
            prepare_float_row(format_for(spec, 0, args->count), x, spec->columns, r, args->count, prepared);
    }
}

INLINE void linear_tiles(const linear_spec *spec, const linear_args *args, int p, const unsigned char *prepared,
                         range rows, range tiles)
{
    if (is_int(spec->part[0].format))
        int_tiles(spec, args, p, prepared, rows, tiles);
    else
        float_tiles(spec, args, p, prepared, rows, tiles);
}

/* `count` rows in even parts that the cache holds, at least `parts` if there are so many groups of rows. */
INLINE int64_t int_block_rows(int columns, int64_t count, int64_t parts)
{
    int64_t bytes = count * prepared_bytes(columns), most = max64(parts, (bytes + CACHED_BYTES - 1) / CACHED_BYTES);
    int64_t groups = (count + ROW_GROUP - 1) / ROW_GROUP;
    return max64(1, (groups + most - 1) / most) * ROW_GROUP;
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
    if (!quantized && spec->norm == NORM_NONE && count == 1) {
        prepared = NULL; /* a single row is read where it lies */
    } else {
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
    const int64_t block = quantized ? int_block_rows(spec->columns, count, (4 * w->count + tiles - 1) / tiles)
                                    : float_block_rows(count);
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
        unpack_row_float(part, columns, weight, row, y);
    }
}

#endif

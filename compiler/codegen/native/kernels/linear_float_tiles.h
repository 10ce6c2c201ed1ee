/* The float half of a linear layer: sums of dense or sparse tiles, stored with all that is fused behind
 * them. */
#ifndef MIAOTUI_LINEAR_FLOAT_TILES_H
#define MIAOTUI_LINEAR_FLOAT_TILES_H

#include "linear_float.h"
#include "linear_sparse.h"

/* The outputs of `tiles` of part `p` for `rows`, stored. `prepared`: all rows by prepare_float_row(), or
 * NULL if there is but one, which is read where it lies. */
INLINE void float_tiles(const linear_spec *spec, const linear_args *args, int p,
                        const unsigned char *prepared, range rows, range tiles)
{
    const int format = format_for(spec, p, args->count), pair = spec->gated ? 2 : 1;
    const int64_t rows_of_x = prepared ? args->count : 0;
    const float *x = prepared ? (const float *)prepared : args->x;
    float sums[FLOAT_ROWS * 2 * TILE];
    const int64_t many = rows.end - rows.begin, most = many <= 3 ? 4 / pair : 2 / pair;
    for (int64_t t = tiles.begin; t < tiles.end; t += most) {
        const int64_t end = min64(tiles.end, t + most);
        const range physical = {t * pair, end * pair};
        if (format == WEIGHT_SPARSE)
            sparse_sums(spec->columns, args->weight[p], tiles_of(&spec->part[p]) * pair, x, rows_of_x, rows,
                        physical, sums);
        else
            float_sums(format, spec->columns, args->weight[p], x, rows_of_x, rows, physical, sums);
        for (int64_t r = 0; r < many; r++)
            for (int64_t i = t; i < end; i++) {
                const float *at = sums + ((i - t) * pair * many + r) * TILE;
                if (spec->gated)
                    store_gated(spec, args, rows.begin + r, i, load16(at), load16(at + many * TILE));
                else
                    store_tile(spec, args, p, rows.begin + r, i, load16(at));
            }
    }
}

/* Row `row` of a packed weight as floats. */
INLINE void unpack_row_float(const linear_part *part, int columns, const unsigned char *weight, int64_t row,
                             float *y)
{
    if (part->format == WEIGHT_SPARSE)
        unpack_row_sparse(part, columns, weight, row, y);
    else
        unpack_row_dense(part, columns, weight, row, y);
}

#endif

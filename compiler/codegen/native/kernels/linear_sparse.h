/* Tiles of block-sparse float weights: blocks of 16 rows by 1 column, of which only those with a number
 * are stored.
 *
 * A packed weight: uint32 starts[tiles][chunks], and one more: where the blocks of a tile and chunk begin;
 * then uint16 columns[blocks], within their chunk; then float values[blocks][16]. Each part begins at a
 * multiple of 64 bytes. Chunks are those of linear_float.h. Sums are chains over the columns in their
 * order, as of dense tiles. */
#ifndef MIAOTUI_LINEAR_SPARSE_H
#define MIAOTUI_LINEAR_SPARSE_H

#include "linear_float.h"

typedef struct sparse_weight {
    const uint32_t *starts;
    const uint16_t *columns;
    const unsigned char *values;
} sparse_weight;

INLINE size_t line_bytes(size_t bytes) { return (bytes + 63) / 64 * 64; }

INLINE sparse_weight sparse_parts(const unsigned char *weight, int columns, int64_t tiles)
{
    const uint32_t *starts = (const uint32_t *)weight;
    int64_t lists = tiles * chunks_of(columns).count;
    const unsigned char *indices = weight + line_bytes((size_t)(lists + 1) * sizeof(uint32_t));
    return (sparse_weight){starts, (const uint16_t *)indices,
                           indices + line_bytes(starts[lists] * sizeof(uint16_t))};
}

/* Blocks of a line each that are fetched ahead of more than FEW_ROWS rows: one tile at a time is read then, and
 * the CPU's own prefetching begins anew at every page. Tiles side by side overlap without. */
enum { AHEAD = 24 };

/* Sums as of a float_block; lists: the starts of the first tile's blocks, those of the next tile `step`
 * further. */
typedef void (*sparse_block)(const sparse_weight *w, const uint32_t *lists, int64_t step, const float *x,
                             float *sums, int64_t sums_step, int first);

INLINE void multiply_sparse(const int rows, const int tiles, const sparse_weight *w, const uint32_t *lists,
                            int64_t step, const float *x, float *sums, int64_t sums_step, int first)
{
    enum { MOST = BLOCK_ROWS * BLOCK_TILES < 4 * FEW_ROWS ? 4 * FEW_ROWS : BLOCK_ROWS * BLOCK_TILES };
    vf32 a[MOST * PIECES]; /* of tile t, piece i, row r: a[(t * PIECES + i) * rows + r] */
    uint32_t begin[4], count[4], common = UINT32_MAX;
#define EACH_TILE _Pragma("GCC unroll 4") for (int t = 0; t < tiles; t++)
#define EACH_ROW _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++)
#define EACH_PIECE _Pragma("GCC unroll 4") for (int i = 0; i < PIECES; i++)
#define SUMS_AT *(vf32_unaligned *)(sums + t * sums_step + r * TILE + i * LANES)
#define ADD(block)                                                                                           \
    do {                                                                                                     \
        const uint32_t at = block;                                                                           \
        const unsigned char *v = w->values + at * (int64_t)(TILE * sizeof(float));                           \
        const float *column = x + w->columns[at];                                                            \
        if (rows > FEW_ROWS)                                                                                 \
            __builtin_prefetch(v + AHEAD * 64);                                                              \
        EACH_ROW                                                                                             \
        {                                                                                                    \
            EACH_PIECE a[(t * PIECES + i) * rows + r] +=                                                     \
                *(const vf32_unaligned *)(v + i * LANE_BYTES) * column[r * CHUNK_STRIDE];                    \
        }                                                                                                    \
    } while (0)
    EACH_TILE
    {
        begin[t] = lists[t * step];
        count[t] = lists[t * step + 1] - begin[t];
        common = count[t] < common ? count[t] : common;
        EACH_ROW
        {
            EACH_PIECE a[(t * PIECES + i) * rows + r] = first ? (vf32){0} : (vf32)SUMS_AT;
        }
    }
    if (tiles > 1)
        for (uint32_t n = 0; n < common; n++)
            EACH_TILE ADD(begin[t] + n);
    EACH_TILE
    {
        for (uint32_t n = tiles > 1 ? common : 0; n < count[t]; n++)
            ADD(begin[t] + n);
    }
    EACH_TILE
    {
        EACH_ROW
        {
            EACH_PIECE SUMS_AT = a[(t * PIECES + i) * rows + r];
        }
    }
#undef EACH_TILE
#undef EACH_ROW
#undef EACH_PIECE
#undef SUMS_AT
#undef ADD
}

#define SPARSE_BLOCK(rows, tiles)                                                                            \
    static __attribute__((noinline)) void multiply_sparse_##rows##x##tiles(                                  \
        const sparse_weight *w, const uint32_t *lists, int64_t step, const float *x, float *sums,            \
        int64_t sums_step, int first)                                                                        \
    {                                                                                                        \
        multiply_sparse(rows, tiles, w, lists, step, x, sums, sums_step, first);                             \
    }
#define SPARSE_ENTRY(rows, tiles) [tiles][rows] = multiply_sparse_##rows##x##tiles,

FLOAT_BLOCKS(SPARSE_BLOCK)

/* Of tiles [tiles.begin, tiles.end) of `all`: as float_sums() of dense ones. */
INLINE void sparse_sums(int columns, const unsigned char *weight, int64_t all, const float *x, int64_t count,
                        range rows, range tiles, float *sums)
{
    static const sparse_block blocks_by_size[5][BLOCK_ROWS + 1] = {FLOAT_BLOCKS(SPARSE_ENTRY)};
    const sparse_weight w = sparse_parts(weight, columns, all);
    const chunking c = chunks_of(columns);
    const int64_t many = rows.end - rows.begin, step = many * TILE;
    const int64_t blocks = (many + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (int64_t t = tiles.begin; t < tiles.end;) {
        /* Tiles share no loads of x; several at once only hide the latency of few rows. */
        const int width = tiles.end - t >= 4 && blocks == 1 && blocks_by_size[4][many] ? 4 : 1;
        for (int i = 0; i < c.count; i++)
            for (int64_t b = 0; b < blocks; b++) {
                const int64_t begin = many * b / blocks, end = many * (b + 1) / blocks;
                const int64_t row = i * count + rows.begin + begin;
                const float *from = count ? x + row * CHUNK_STRIDE : x + i * c.columns;
                blocks_by_size[width][end - begin](&w, w.starts + t * c.count + i, c.count, from,
                                                   sums + (t - tiles.begin) * step + begin * TILE, step, !i);
            }
        t += width;
    }
}

INLINE void unpack_row_sparse(const linear_part *part, int columns, const unsigned char *weight, int64_t row,
                              float *y)
{
    const sparse_weight w = sparse_parts(weight, columns, tiles_of(part));
    const chunking c = chunks_of(columns);
    memset(y, 0, (size_t)columns * sizeof(float));
    for (int i = 0; i < c.count; i++) {
        const uint32_t *list = w.starts + row / TILE * c.count + i;
        for (uint32_t at = list[0]; at < list[1]; at++)
            y[i * c.columns + w.columns[at]] = ((const float *)w.values)[at * (int64_t)TILE + row % TILE];
    }
}

#undef SPARSE_BLOCK
#undef SPARSE_ENTRY

#endif

/* Tiles of float weights: fp32, fp16 and bf16, multiplied in float32.
 *
 * A tile holds 16 rows of a weight, column by column: 16 floats or halves; of bf16, pairs of columns, 16
 * times two numbers, so that either half of a 32-bit lane becomes a float by a shift. The last pair's
 * missing column is 0.
 *
 * Every output is one chain of fused multiply-adds over the columns in their order, whatever block it is
 * computed in. So it depends neither on the number of threads nor on the rows that are computed with it. */
#ifndef MIAOTUI_LINEAR_FLOAT_H
#define MIAOTUI_LINEAR_FLOAT_H

#include "isa/bf16.h"
#include "linear_store.h"

/* WEIGHT_BF16_BOTH: bf16 too, of a layer that may round its activations so. From BF16_COUNT rows on it
 * does where the CPU multiplies pairs of bf16, which is twice as fast; the sums are float32 all the same. */
enum { WEIGHT_F32 = 1, WEIGHT_F16 = 2, WEIGHT_BF16 = 3, WEIGHT_SPARSE = 4, WEIGHT_BF16_BOTH = 5 };
enum { BF16_COUNT = 4 };

/* How part `p` of a layer is multiplied with `count` rows: its format, BF16_BOTH only where all parts
 * round. */
INLINE int format_for(const linear_spec *spec, int p, int64_t count)
{
    int both = MIAOTUI_BF16_DOT && count >= BF16_COUNT;
    for (int i = 0; i < spec->parts; i++)
        both &= spec->part[i].format == WEIGHT_BF16_BOTH;
    return spec->part[p].format == WEIGHT_BF16_BOTH && !both ? WEIGHT_BF16 : spec->part[p].format;
}

/* The blocks of sums that stay in registers: batch rows times tiles; four tiles of FEW_ROWS at most.
 * X(rows, tiles). */
#if defined(__AVX512F__)
enum { BLOCK_ROWS = 14, BLOCK_TILES = 2, FEW_ROWS = 3 };
#define FLOAT_BLOCKS(X) \
    X(1, 1) X(2, 1) X(3, 1) X(4, 1) X(5, 1) X(6, 1) X(7, 1) X(8, 1) X(9, 1) X(10, 1) X(11, 1) \
    X(12, 1) X(13, 1) X(14, 1) X(1, 2) X(2, 2) X(3, 2) X(4, 2) X(5, 2) X(6, 2) X(7, 2) X(8, 2) \
    X(9, 2) X(10, 2) X(11, 2) X(12, 2) X(13, 2) X(14, 2) X(1, 4) X(2, 4) X(3, 4)
#elif defined(__AVX__) || defined(__aarch64__)
enum { BLOCK_ROWS = 6, BLOCK_TILES = 1, FEW_ROWS = 1 };
#define FLOAT_BLOCKS(X) X(1, 1) X(2, 1) X(3, 1) X(4, 1) X(5, 1) X(6, 1) X(1, 4)
#else
enum { BLOCK_ROWS = 3, BLOCK_TILES = 1, FEW_ROWS = 0 };
#define FLOAT_BLOCKS(X) X(1, 1) X(2, 1) X(3, 1)
#endif

/* Input rows are copied in chunks of up to CHUNK columns, CHUNK_STRIDE floats apart: a stride that the
 * compiler knows, and that spreads rows over the sets of the first-level cache, as many columns are powers
 * of two. A chunk of two tiles is multiplied with FLOAT_ROWS rows while it is in the second-level cache. */
enum { CHUNK = 512, CHUNK_STRIDE = CHUNK + TILE, FLOAT_ROWS = 12 * 14 };

typedef struct chunking {
    int count, columns;
} chunking;

INLINE chunking chunks_of(int columns)
{
    int count = (columns + CHUNK - 1) / CHUNK;
    chunking c = {count, count ? ((columns + count - 1) / count + TILE - 1) / TILE * TILE : 0};
    return c;
}

/* How many rows are multiplied with a tile before the next one: `count` in even parts. */
INLINE int64_t float_block_rows(int64_t count)
{
    int64_t parts = (count + FLOAT_ROWS - 1) / FLOAT_ROWS;
    return (count + parts - 1) / parts;
}

/* Bytes of one prepared row. */
INLINE int64_t float_row_bytes(int columns)
{
    return chunks_of(columns).count * CHUNK_STRIDE * (int64_t)sizeof(float);
}

/* Copy row `row` of `count` to its place among the prepared ones: float[chunks][count][CHUNK_STRIDE]. For
 * weights of BF16_BOTH: its numbers in bf16, as many behind them as fill a pair, with the same strides. */
INLINE void prepare_float_row(int format, const float *x, int columns, int64_t row, int64_t count,
                              unsigned char *prepared)
{
    const chunking c = chunks_of(columns);
    for (int i = 0; i < c.count; i++) {
        const int begin = i * c.columns, width = (int)min64(c.columns, columns - begin);
        float *to = (float *)prepared + (i * count + row) * CHUNK_STRIDE;
        if (format == WEIGHT_BF16_BOTH) {
            uint16_t *rounded = (uint16_t *)to;
            for (int k = 0; k < width; k++)
                rounded[k] = bfloat16_of(x[begin + k]);
            rounded[width] = 0;
        } else {
            memcpy(to, x + begin, (size_t)width * sizeof(float));
        }
    }
}

/* Bytes of a column of a tile; tiles of bf16 have an even number of columns. */
INLINE int64_t column_bytes(int format) { return format == WEIGHT_F32 ? 64 : 32; }

INLINE int64_t float_tile_bytes(int format, int columns)
{
    int paired = format == WEIGHT_BF16 || format == WEIGHT_BF16_BOTH;
    return column_bytes(format) * (paired ? (columns + 1) / 2 * 2 : columns);
}

/* The numbers of column even + odd that one register holds: piece `i` of a tile. */
INLINE vf32 weights_of(int format, const unsigned char *w, int64_t even, int odd, int i)
{
    if (format == WEIGHT_F32)
        return *(const vf32_unaligned *)(w + 64 * (even + odd) + i * LANE_BYTES);
    if (format == WEIGHT_F16)
        return from_halves((const uint16_t *)(w + 32 * (even + odd)) + i * LANES);
    const vi32 pair = (vi32)*(const vf32_unaligned *)(w + 32 * even + i * LANE_BYTES);
    return (vf32)(odd ? pair & ~0xffff : pair << 16);
}

/* What is fetched while a block is multiplied: `lines` cache lines from `at` on for every STRIDE columns.
 * It is a part of the tiles that come next, which thus are in the second-level cache before they are read. */
typedef struct fetch {
    const unsigned char *at;
    int lines;
} fetch;

enum { STRIDE = 4 };

typedef uint32_t uint32_unaliased __attribute__((may_alias));

/* sums[tile][row][16] (tiles `sums_step` floats apart) = or, if not `first`, += w x^T over `columns`.
 * x: rows of CHUNK_STRIDE floats. w: tiles `step` bytes apart. */
typedef void (*float_block)(const unsigned char *w, int64_t step, int columns, const float *x, float *sums,
                            int64_t sums_step, int first, fetch next);

INLINE void multiply_block(const int format, const int rows, const int tiles, const unsigned char *w,
                           int64_t step, int columns, const float *x, float *sums, int64_t sums_step,
                           int first, fetch next)
{
    enum { MOST = BLOCK_ROWS * BLOCK_TILES < 4 * FEW_ROWS ? 4 * FEW_ROWS : BLOCK_ROWS * BLOCK_TILES };
    const int slices = tiles * PIECES;
    vf32 a[MOST * PIECES]; /* of slice s, row r: a[s * rows + r] */
    int k = 0;
#define EACH_ROW _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++)
#define EACH_SLICE _Pragma("GCC unroll 16") for (int s = 0; s < slices; s++)
#define SUMS_AT *(vf32_unaligned *)(sums + s / PIECES * sums_step + r * TILE + s % PIECES * LANES)
#define ADD_COLUMN(even, odd)                                                                                \
    do {                                                                                                     \
        vf32 v[4 * PIECES];                                                                                  \
        EACH_SLICE v[s] = weights_of(format, w + s / PIECES * step, even, odd, s % PIECES);                  \
        EACH_ROW                                                                                             \
        {                                                                                                    \
            const float number = x[r * CHUNK_STRIDE + (even) + (odd)];                                       \
            EACH_SLICE a[s * rows + r] += v[s] * number;                                                     \
        }                                                                                                    \
    } while (0)
#define ADD_PAIR(even)                                                                                       \
    EACH_ROW                                                                                                 \
    {                                                                                                        \
        const uint32_t pair = *(const uint32_unaliased *)(x + r * CHUNK_STRIDE + (even) / 2);                \
        EACH_SLICE a[s * rows + r] = dot_pair(a[s * rows + r], w + s * step + 32 * (even), pair);            \
    }
    EACH_ROW
    {
        EACH_SLICE a[s * rows + r] = first ? (vf32){0} : (vf32)SUMS_AT;
    }
    for (; k + STRIDE <= columns; k += STRIDE) {
        for (int i = 0; i < next.lines; i++, next.at += 64)
            __builtin_prefetch(next.at);
        if (format == WEIGHT_BF16_BOTH) {
            ADD_PAIR(k)
            ADD_PAIR(k + 2)
        } else {
            _Pragma("GCC unroll 4") for (int i = 0; i < STRIDE; i++) ADD_COLUMN(k + i / 2 * 2, i % 2);
        }
    }
    for (; k < columns; k += format == WEIGHT_BF16_BOTH ? 2 : 1) {
        if (format == WEIGHT_BF16_BOTH)
            ADD_PAIR(k)
        else
            ADD_COLUMN(k / 2 * 2, k % 2);
    }
    EACH_ROW
    {
        EACH_SLICE SUMS_AT = a[s * rows + r];
    }
#undef EACH_ROW
#undef EACH_SLICE
#undef SUMS_AT
#undef ADD_COLUMN
#undef ADD_PAIR
}

/* One function for each format and block, shared by all layers: `multiply_F32_14x2`. */
#define FLOAT_BLOCK(format, rows, tiles)                                                                     \
    static __attribute__((noinline)) void multiply_##format##_##rows##x##tiles(                              \
        const unsigned char *w, int64_t step, int columns, const float *x, float *sums, int64_t sums_step,   \
        int first, fetch next)                                                                               \
    {                                                                                                        \
        multiply_block(WEIGHT_##format, rows, tiles, w, step, columns, x, sums, sums_step, first, next);     \
    }
#define FLOAT_ENTRY(format, rows, tiles) [tiles][rows] = multiply_##format##_##rows##x##tiles,

#define X(rows, tiles) FLOAT_BLOCK(F32, rows, tiles)
FLOAT_BLOCKS(X)
#undef X
#define X(rows, tiles) FLOAT_BLOCK(F16, rows, tiles)
FLOAT_BLOCKS(X)
#undef X
#define X(rows, tiles) FLOAT_BLOCK(BF16, rows, tiles)
FLOAT_BLOCKS(X)
#undef X
#define X(rows, tiles) FLOAT_BLOCK(BF16_BOTH, rows, tiles)
FLOAT_BLOCKS(X)
#undef X

/* Blocks by tiles and rows; NULL where such a block doesn't fit the registers. */
INLINE float_block block_of(int format, int tiles, int rows)
{
#define X(rows, tiles) FLOAT_ENTRY(F32, rows, tiles)
    static const float_block f32[5][BLOCK_ROWS + 1] = {FLOAT_BLOCKS(X)};
#undef X
#define X(rows, tiles) FLOAT_ENTRY(F16, rows, tiles)
    static const float_block f16[5][BLOCK_ROWS + 1] = {FLOAT_BLOCKS(X)};
#undef X
#define X(rows, tiles) FLOAT_ENTRY(BF16, rows, tiles)
    static const float_block bf16[5][BLOCK_ROWS + 1] = {FLOAT_BLOCKS(X)};
#undef X
#define X(rows, tiles) FLOAT_ENTRY(BF16_BOTH, rows, tiles)
    static const float_block bf16_both[5][BLOCK_ROWS + 1] = {FLOAT_BLOCKS(X)};
#undef X
    switch (format) {
    case WEIGHT_F32: return f32[tiles][rows];
    case WEIGHT_F16: return f16[tiles][rows];
    case WEIGHT_BF16: return bf16[tiles][rows];
    default: return MIAOTUI_BF16_DOT ? bf16_both[tiles][rows] : bf16[tiles][rows];
    }
}

/* How many of `left` tiles of the weight are multiplied with `rows` rows at once. */
INLINE int tiles_at_once(int format, int64_t rows, int64_t left)
{
    if (left >= 4 && rows <= BLOCK_ROWS && block_of(format, 4, (int)rows))
        return 4;
    return (int)min64(left, BLOCK_TILES);
}

/* What block `b` of `blocks` fetches: its part of `width` tiles from `w` on, `bytes` apart, `lines` of
 * each. A single block reads as fast as memory gives: fetching further ahead only disturbs it. */
INLINE fetch fetch_of(const unsigned char *w, int64_t bytes, int64_t lines, int width, int columns, int64_t b,
                      int64_t blocks)
{
    const int64_t strides = max64(1, columns / STRIDE), own = (width * lines + blocks - 1) / blocks;
    const int64_t each = (own + strides - 1) / strides, from = b * each * strides;
    if (blocks == 1 || from >= width * lines)
        return (fetch){w, 0};
    return (fetch){w + from / lines * bytes + from % lines * 64, (int)each};
}

/* Sums of `rows` (at most FLOAT_ROWS) and `tiles` of the weight, as blocks leave them: [tile][row][16]. x:
 * prepared rows of `count`, or, of a single row, itself. */
INLINE void float_sums(int format, int columns, const unsigned char *weight, const float *x, int64_t count,
                       range rows, range tiles, float *sums)
{
    const chunking c = chunks_of(columns);
    const int64_t bytes = float_tile_bytes(format, columns), many = rows.end - rows.begin, step = many * TILE;
    const int64_t blocks = (many + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (int64_t t = tiles.begin; t < tiles.end;) {
        const int width = tiles_at_once(format, many, tiles.end - t);
        for (int i = 0; i < c.count; i++) {
            const int first = i * c.columns, wide = (int)min64(c.columns, columns - first);
            const unsigned char *w = weight + t * bytes + first * column_bytes(format);
            for (int64_t b = 0; b < blocks; b++) {
                const int64_t begin = many * b / blocks, end = many * (b + 1) / blocks;
                const float *from = count ? x + (i * count + rows.begin + begin) * CHUNK_STRIDE : x + first;
                const fetch next = fetch_of(w + width * bytes, bytes, wide * column_bytes(format) / 64, width,
                                            wide, b, blocks);
                block_of(format, width, (int)(end - begin))(
                    w, bytes, wide, from, sums + (t - tiles.begin) * step + begin * TILE, step, !i, next);
            }
        }
        t += width;
    }
}

INLINE void unpack_row_dense(const linear_part *part, int columns, const unsigned char *weight, int64_t row,
                             float *y)
{
    const unsigned char *tile = weight + row / TILE * float_tile_bytes(part->format, columns);
    for (int k = 0; k < columns; k++)
        y[k] = weights_of(part->format, tile, k / 2 * 2, k % 2, (int)(row % TILE / LANES))[row % LANES];
}

#undef FLOAT_BLOCK
#undef FLOAT_ENTRY

#endif

/* Integer weights times integer activations: 16 rows of weights by up to eight of activations in registers.
 *
 * A packed weight is a row of tiles of 16 rows. A tile holds, for each superblock of 256 columns (two-level formats
 * only): 16 float16 d and, with two-level offsets, 16 float16 m. For each group of columns (of 16 columns: before
 * each half of a block): its 16 scales and, if any, 16 offsets, or zero points less 128. For each block of 32 columns: the
 * codes, 64 bytes for 4 columns of 16 rows. With 4 bits a byte has a code of columns 8j + k and, above, one of
 * 8j + 4 + k. The fifth and sixth bits follow in planes: bit j of byte i belongs to byte i of the columns 4j ..
 * 4j + 3; two bits: of the columns 4j .. in the plane j / 4. Scales per row stand once, at the tile's beginning. */
#ifndef MIAOTUI_LINEAR_INT_H
#define MIAOTUI_LINEAR_INT_H

#include "isa/widen.h"
#include "linear_spec.h"
#include "linear_store.h"
#include "quantize.h"

#ifdef UNROLL /* tests leave loops as they are */
#elif defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Up to SPLIT_ROWS rows, reading weights is what takes time: one tile at a time, in one stream that is fetched
 * PREFETCH_AHEAD bytes before its use, and sums in two chains, so that latencies do not show. */
enum { SUPERBLOCK = 256, HALF = 16, LINE = 64, PREFETCH_AHEAD = 8192, SPLIT_ROWS = 2 };
enum { MOST_SUMS = 2 * PIECES * REGISTER_ROWS };

INLINE int bits_of_format(int format) { return format & 15; }
INLINE int bias_of_format(int format) { return (format >> 4 & 1) << (bits_of_format(format) - 1); }
INLINE int scale_of_format(int format) { return format >> 8 & 15; }
INLINE int offset_of_format(int format) { return format >> 12 & 15; }

/* Bytes of the scales and of the offsets of 16 rows, for one group. */
INLINE int scale_bytes(int format)
{
    const int kind = scale_of_format(format);
    return kind == SCALE_TWO_LEVEL ? TILE : kind == SCALE_F16 ? 2 * TILE : 4 * TILE;
}

INLINE int offset_bytes(int format)
{
    switch (offset_of_format(format)) {
    case OFFSET_NONE: return 0;
    case OFFSET_F16: return 2 * TILE;
    case OFFSET_F32: return 4 * TILE;
    default: return TILE;
    }
}

INLINE int record_bytes(int format) { return scale_bytes(format) + offset_bytes(format); }

/* Bytes at the beginning of a superblock. */
INLINE int head_bytes(int format)
{
    return (scale_of_format(format) == SCALE_TWO_LEVEL ? 2 * TILE : 0)
           + (offset_of_format(format) == OFFSET_TWO_LEVEL ? 2 * TILE : 0);
}

/* Blocks of 32 columns that share a scale. */
INLINE int64_t blocks_of_group(const linear_part *part, int columns)
{
    return scale_of_format(part->format) == SCALE_ROW ? blocks_of(columns) : max64(1, part->group / CODES);
}

INLINE int64_t tile_bytes(const linear_part *part, int columns)
{
    const int format = part->format, halves = part->group == HALF ? 2 : 1;
    int64_t per = blocks_of_group(part, columns), groups = (blocks_of(columns) + per - 1) / per;
    int64_t heads = head_bytes(format) ? blocks_of(columns) * CODES / SUPERBLOCK : 0;
    return heads * head_bytes(format) + groups * halves * record_bytes(format)
           + blocks_of(columns) * bits_of_format(format) * (CODES * TILE / 8);
}

/* Scales and offsets of some rows of one group, so that weight = scale * (code - bias) + offset. */
typedef struct affine {
    vf32 scale, offset;
} affine;

/* `record`: the group's, `head`: the superblock's; `piece`: which LANES of the 16 rows. */
INLINE affine load_affine(int format, const unsigned char *record, const unsigned char *head, int piece)
{
    const int at = piece * LANES, kind = scale_of_format(format);
    const unsigned char *behind = record + scale_bytes(format);
    affine a = {{0}, {0}};
    if (kind == SCALE_F16)
        a.scale = from_halves((const uint16_t *)record + at);
    else if (kind == SCALE_TWO_LEVEL)
        a.scale = from_halves((const uint16_t *)head + at) * from_bytes((const int8_t *)record + at);
    else
        a.scale = *(const vf32_unaligned *)((const float *)record + at);
    switch (offset_of_format(format)) {
    case OFFSET_ZERO_POINT:
        /* Row scales are applied at the end, to both. */
        a.offset = from_bytes((const int8_t *)behind + at) + 128.0f;
        a.offset *= kind == SCALE_ROW ? (vf32){0} - 1.0f : -a.scale;
        break;
    case OFFSET_F16: a.offset = from_halves((const uint16_t *)behind + at); break;
    case OFFSET_F32: a.offset = *(const vf32_unaligned *)((const float *)behind + at); break;
    case OFFSET_TWO_LEVEL:
        a.offset = from_halves((const uint16_t *)head + TILE + at) * from_bytes((const int8_t *)behind + at);
        break;
    }
    return a;
}

INLINE vu8 load_codes(const unsigned char *p) { return (vu8)*(const vu8_unaligned *)p; }
INLINE vu8 shifted_down(vu8 v, int by) { return (vu8)((vu16)v >> (unsigned short)by); }
INLINE vu8 shifted_up(vu8 v, int by) { return (vu8)((vu16)v << (unsigned short)by); }

/* The high bits of the vector `j` of a block's eight, in place. */
INLINE vu8 high_bits(int bits, const unsigned char *planes, int j)
{
    const int up = bits == 5 ? 4 - j : 4 - 2 * (j % 4), mask = bits == 5 ? 16 : 48;
    vu8 plane = load_codes(planes + (bits == 6 ? j / 4 * LINE : 0));
    return (up < 0 ? shifted_down(plane, -up) : shifted_up(plane, up)) & (unsigned char)mask;
}

/* The four vectors of one half (16 columns) of the block at `p`, of the rows of one piece. */
INLINE void unpack_half(int bits, const unsigned char *p, int half, int piece, vu8 *codes)
{
    const int at = piece * LANE_BYTES;
    if (bits == 8) {
        UNROLL for (int j = 0; j < 4; j++)
            codes[j] = load_codes(p + (4 * half + j) * LINE + at);
        return;
    }
    UNROLL for (int j = 0; j < 2; j++) {
        vu8 both = load_codes(p + (2 * half + j) * LINE + at);
        codes[2 * j] = both & 15;
        codes[2 * j + 1] = shifted_down(both, 4) & 15;
    }
    if (bits > 4)
        UNROLL for (int j = 0; j < 4; j++)
            codes[j] |= high_bits(bits, p + 4 * LINE + at, 4 * half + j);
}

/* What the dot product of a format starts with is `start_factor` * -(sum of the activations' codes). */
INLINE int start_factor(int format)
{
    return bias_of_format(format) - (bits_of_format(format) == 8 ? BYTE_BIAS : 0);
}

INLINE vi32 dot_half(int bits, vi32 sum, const vu8 *codes, const int8_t *x)
{
    return bits == 8 ? dot_bytes(sum, codes, x) : dot_codes(sum, codes, x, bits);
}

/* sums[slice * rows + row] of `tiles` tiles, the first at `w`, and `rows` activations from the row `at` on of the
 * group of `stride` rows at `x`. A slice is LANES rows of weights. */
INLINE void dot_tiles(const linear_part *part, const int columns, const unsigned char *w, const int tiles,
                      const unsigned char *x, const int at, const int rows, const int stride, vf32 *sums)
{
    const int format = part->format, bits = bits_of_format(format), slices = tiles * PIECES;
    const int halves = part->group == HALF, factor = start_factor(format);
    const int has_offset = offset_of_format(format) != OFFSET_NONE, per_row = scale_of_format(format) == SCALE_ROW;
    const int64_t blocks = blocks_of(columns), per = blocks_of_group(part, columns);
    const int64_t outer = head_bytes(format) ? SUPERBLOCK / CODES : per, bytes = tile_bytes(part, columns);
    const int block_bytes = bits * (CODES * TILE / 8);
    const unsigned char *first = w, *head = w;
    affine a[2 * PIECES];
    UNROLL for (int i = 0; i < slices * rows; i++)
        sums[i] = (vf32){0};
    for (int64_t b = 0; b < blocks; b += outer) {
        head = w;
        w += head_bytes(format);
        for (int64_t g = 0; g < outer; g += per) {
            if (!halves) {
                UNROLL for (int s = 0; s < slices; s++)
                    a[s] = load_affine(format, w + s / PIECES * bytes, head + s / PIECES * bytes, s % PIECES);
                w += record_bytes(format);
            }
            for (int64_t k = 0; k < per; k++) {
                const int8_t *values = (const int8_t *)x + at * CODES;
                const float *numbers = (const float *)(x + stride * CODES) + at;
                const int32_t *less = (const int32_t *)(numbers + 2 * stride);
                const unsigned char *block = w + 2 * halves * record_bytes(format);
                vi32 dots[MOST_SUMS];
                UNROLL for (int line = 0; line < block_bytes + record_bytes(format); line += LINE) {
                    if (tiles == 1)
                        __builtin_prefetch(w + PREFETCH_AHEAD + line);
                    else
                        UNROLL for (int t = 0; t < tiles; t++)
                            __builtin_prefetch(w + (tiles + t) * bytes + line, 0, 2);
                }
                UNROLL for (int half = 0; half < 2; half++) {
                    vu8 codes[8 * PIECES];
                    UNROLL for (int s = 0; s < slices; s++) {
                        if (halves)
                            a[s] = load_affine(format, w + half * record_bytes(format) + s / PIECES * bytes,
                                               head + s / PIECES * bytes, s % PIECES);
                        unpack_half(bits, block + s / PIECES * bytes, half, s % PIECES, codes + 4 * s);
                    }
                    UNROLL for (int r = 0; r < rows; r++) {
                        int32_t start = less[r];
                        if (halves)
                            start = half ? less[r] - less[stride + r] : less[stride + r];
                        UNROLL for (int s = 0; s < slices; s++) {
                            vi32 dot = dots[s * rows + r];
                            if (halves || half == 0)
                                dot = factor ? ((vi32){0} + start) * factor : (vi32){0};
                            const vu8 *own = codes + 4 * s;
                            const int8_t *value = values + r * CODES + half * HALF;
                            if (rows <= SPLIT_ROWS && half == 1 && !halves)
                                dots[s * rows + r] = dot + dot_half(bits, (vi32){0}, own, value);
                            else
                                dots[s * rows + r] = dot_half(bits, dot, own, value);
                        }
                    }
                    if (halves || half == 1)
                        UNROLL for (int r = 0; r < rows; r++) {
                            float scale = numbers[r], sum = numbers[stride + r];
                            if (halves) {
                                int32_t own = half ? less[r] - less[stride + r] : less[stride + r];
                                sum = scale * (float)-own;
                            }
                            UNROLL for (int s = 0; s < slices; s++) {
                                vf32 dot = __builtin_convertvector(dots[s * rows + r], vf32);
                                vf32 *to = &sums[s * rows + r];
                                *to += dot * (per_row ? (vf32){0} + scale : a[s].scale * scale);
                                if (has_offset)
                                    *to += a[s].offset * sum;
                            }
                        }
                }
                w = block + block_bytes;
                x += stride * CODED_BYTES;
            }
        }
    }
    if (per_row)
        UNROLL for (int s = 0; s < slices; s++)
            UNROLL for (int r = 0; r < rows; r++)
                sums[s * rows + r] *= load_affine(format, first + s / PIECES * bytes, first, s % PIECES).scale;
}

INLINE f32x16 join_pieces(const vf32 *sums, int step)
{
    union { vf32 pieces[PIECES]; f32x16 whole; } u;
    for (int i = 0; i < PIECES; i++)
        u.pieces[i] = sums[i * step];
    return u.whole;
}

/* `tiles` tiles of outputs (of a gated part: one, of two) for `rows` rows, from `at` on, of the group at `x`, which
 * has `stride` rows and begins at row `row` of the batch. */
INLINE void int_block(const linear_spec *spec, const linear_args *args, int p, int64_t tile, const int tiles,
                      const unsigned char *x, int64_t row, const int at, const int rows, const int stride)
{
    const linear_part *part = &spec->part[p];
    const int64_t bytes = tile_bytes(part, spec->columns);
    const unsigned char *w = args->weight[p] + tile * bytes * (spec->gated ? 2 : 1);
    vf32 sums[MOST_SUMS];
    if (rows <= SPLIT_ROWS)
        for (int t = 0; t < tiles; t++)
            dot_tiles(part, spec->columns, w + t * bytes, 1, x, at, rows, stride, sums + t * PIECES * rows);
    else {
        for (int r = 0; r < rows; r++)
            prefetch_output(spec, args, p, row + at + r, tile, spec->gated ? 1 : tiles);
        dot_tiles(part, spec->columns, w, tiles, x, at, rows, stride, sums);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        if (spec->gated)
            store_gated(spec, args, row + at + r, tile, join_pieces(sums + r, rows),
                        join_pieces(sums + r + PIECES * rows, rows));
        else
            UNROLL for (int t = 0; t < tiles; t++)
                store_tile(spec, args, p, row + at + r, tile + t, join_pieces(sums + r + t * PIECES * rows, rows));
    }
}

/* A group of rows, as many at a time as the registers hold. */
INLINE void int_group(const linear_spec *spec, const linear_args *args, int p, int64_t tile, const int tiles,
                      const unsigned char *x, int64_t row, const int rows)
{
    const int step = rows < REGISTER_ROWS ? rows : REGISTER_ROWS;
    for (int at = 0; at < rows; at += step)
        int_block(spec, args, p, tile, tiles, x, row, at, step, rows);
}

INLINE void int_rows(const linear_spec *spec, const linear_args *args, int p, int64_t tile, const int tiles,
                     const unsigned char *prepared, range rows)
{
    for (int64_t row = rows.begin; row < rows.end; row += group_rows(row, args->count)) {
        const unsigned char *x = prepared + row * prepared_bytes(spec->columns);
        switch (group_rows(row, args->count)) {
        case 8: int_group(spec, args, p, tile, tiles, x, row, 8); break;
        case 4: int_group(spec, args, p, tile, tiles, x, row, 4); break;
        case 2: int_group(spec, args, p, tile, tiles, x, row, 2); break;
        default: int_group(spec, args, p, tile, tiles, x, row, 1);
        }
    }
}

INLINE void int_tiles(const linear_spec *spec, const linear_args *args, int p, const unsigned char *prepared,
                      range rows, range tiles)
{
    int64_t tile = tiles.begin;
    if (spec->gated) {
        for (; tile < tiles.end; tile++)
            int_rows(spec, args, p, tile, 2, prepared, rows);
        return;
    }
    for (; tile + 2 <= tiles.end; tile += 2)
        int_rows(spec, args, p, tile, 2, prepared, rows);
    if (tile < tiles.end)
        int_rows(spec, args, p, tile, 1, prepared, rows);
}

/* The code of column `c` of a block at `p`, of row `i` of its tile. */
INLINE int code_at(int bits, const unsigned char *p, int c, int i)
{
    const int j = c / 4, byte = 4 * i + c % 4;
    if (bits == 8)
        return p[j * LINE + byte];
    int code = p[j / 2 * LINE + byte] >> (j % 2 * 4) & 15;
    if (bits == 5)
        return code | (p[4 * LINE + byte] >> j & 1) << 4;
    return bits == 6 ? code | (p[(4 + j / 4) * LINE + byte] >> (j % 4 * 2) & 3) << 4 : code;
}

/* Row `row` as the source's own arithmetic gives it: (code - zero point) * scale + offset, each step rounded. */
INLINE void unpack_row_int(const linear_part *part, const int columns, const unsigned char *weight, int64_t row,
                           float *y)
{
    const int format = part->format, bits = bits_of_format(format), halves = part->group == HALF, i = row % TILE;
    const int64_t per = blocks_of_group(part, columns), blocks = blocks_of(columns);
    const int64_t outer = head_bytes(format) ? SUPERBLOCK / CODES : per;
    const unsigned char *w = weight + row / TILE * tile_bytes(part, columns), *head = w, *record = w;
    const int piece = i / LANES, lane = i % LANES, has_zero = offset_of_format(format) == OFFSET_ZERO_POINT;
    for (int64_t b = 0; b < blocks; b++) {
        if (b % outer == 0) {
            head = w;
            w += head_bytes(format);
        }
        if (b % per == 0) {
            record = w;
            w += record_bytes(format) * (halves ? 2 : 1);
        }
        for (int c = 0; c < CODES && b * CODES + c < columns; c++) {
            const unsigned char *own = record + (halves ? c / HALF * record_bytes(format) : 0);
            affine a = load_affine(format, own, head, piece);
            int zero = has_zero ? ((const int8_t *)own)[scale_bytes(format) + i] + 128 : bias_of_format(format);
            float value = (float)(code_at(bits, w, c, i) - zero) * a.scale[lane];
            if (!has_zero && offset_of_format(format) != OFFSET_NONE) {
                __asm__("" : "+m"(value)); /* or the compiler rounds product and sum once, together */
                value += a.offset[lane];
            }
            y[b * CODES + c] = value;
        }
        w += bits * (CODES * TILE / 8);
    }
}

#endif

/* Activations as integers: 32 columns of a row share a scale; their codes lie as the dot products read them.
 *
 * Rows are grouped by eight, a rest by four, two and one. A group of n rows holds for every 32 columns: n times 32
 * codes, n scales, n sums (scale * sum of codes), n int32 -(sum of codes), n of the first 16 codes. So a group is
 * read from front to back, whatever the number of columns. */
#ifndef MIAOTUI_QUANTIZE_H
#define MIAOTUI_QUANTIZE_H

#include "isa/isa.h"

enum { CODES = 32, ROW_GROUP = 8, CODED_BYTES = CODES + 4 * 4 };

/* Blocks of 32 columns. */
INLINE int64_t blocks_of(int64_t columns) { return (columns + CODES - 1) / CODES; }

/* Bytes of one row. */
INLINE int64_t prepared_bytes(int64_t columns) { return blocks_of(columns) * CODED_BYTES; }

/* How many rows the group that begins at row `begin` has. */
INLINE int group_rows(int64_t begin, int64_t count)
{
    int64_t left = count - begin;
    return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

/* One block of a group, of its row `i`. */
typedef struct coded {
    int8_t *codes;
    float *scale, *sum;
    int32_t *less, *less_first;
} coded;

INLINE coded coded_row(unsigned char *block, int rows, int i)
{
    float *numbers = (float *)(block + rows * CODES) + i;
    int32_t *integers = (int32_t *)(numbers + 2 * rows);
    return (coded){(int8_t *)block + i * CODES, numbers, numbers + rows, integers, integers + rows};
}

typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef int8_t narrow __attribute__((vector_size(LANES)));

INLINE i32x4 larger4(i32x4 a, i32x4 b)
{
    i32x4 more = a > b;
    return (a & more) | (b & ~more);
}

INLINE int32_t largest_lane(vi32 v)
{
    i32x4 parts[LANES / 4];
    memcpy(parts, &v, sizeof v);
    for (int i = 1; i < LANES / 4; i++)
        parts[0] = larger4(parts[0], parts[i]);
    i32x4 two = larger4(parts[0], __builtin_shufflevector(parts[0], parts[0], 2, 3, 0, 1));
    return larger4(two, __builtin_shufflevector(two, two, 1, 0, 3, 2))[0];
}

/* The sums of the lanes of `a` in lane 0, of `b` in lane 2. */
INLINE i32x4 two_sums(vi32 a, vi32 b)
{
    i32x4 of_a[LANES / 4], of_b[LANES / 4];
    memcpy(of_a, &a, sizeof a);
    memcpy(of_b, &b, sizeof b);
    for (int i = 1; i < LANES / 4; i++) {
        of_a[0] += of_a[i];
        of_b[0] += of_b[i];
    }
    i32x4 pairs = __builtin_shufflevector(of_a[0], of_b[0], 0, 1, 4, 5)
                  + __builtin_shufflevector(of_a[0], of_b[0], 2, 3, 6, 7);
    return pairs + __builtin_shufflevector(pairs, pairs, 1, 0, 3, 2);
}

/* The bits of the largest magnitude of 32 floats. */
INLINE int32_t largest_size(const float *x)
{
    vi32 most = {0};
    for (int i = 0; i < CODES; i += LANES) {
        vi32 size = (vi32)*(const vf32_unaligned *)(x + i) & 0x7fffffff; /* floats without sign sort as integers */
        vi32 more = size > most;
        most = (size & more) | (most & ~more);
    }
    return largest_lane(most);
}

/* 32 floats as codes of x * factor. */
INLINE void quantize_block(const float *x, float factor, float scale, coded to)
{
    vi32 sums[2] = {{0}, {0}};
    for (int i = 0; i < CODES / LANES; i++) {
        vf32 value = *(const vf32_unaligned *)(x + i * LANES) * factor;
        vi32 code = round_lanes(value) << 24 >> 24; /* of NaN, anything that fits */
        narrow small = __builtin_convertvector(code, narrow);
        memcpy(to.codes + i * LANES, &small, sizeof small);
        sums[i * LANES / 16] += code;
    }
    i32x4 less = -two_sums(sums[0] + sums[1], sums[0]);
    *to.scale = scale;
    *to.sum = scale * (float)-less[0];
    *to.less = less[0];
    *to.less_first = less[2];
}

enum { BLOCKS_AT_ONCE = 16 };

/* The scale of blocks is their largest magnitude over 127; one below 1e-30, whose inverse could be infinite, is 0.
 * Three loops over some blocks, each of short chains, of which the CPU runs many at a time. */
INLINE void quantize_blocks(const float *x, int64_t blocks, unsigned char *block, int rows, int i)
{
    for (int64_t first = 0; first < blocks; first += BLOCKS_AT_ONCE) {
        const int count = (int)min64(blocks - first, BLOCKS_AT_ONCE);
        float most[BLOCKS_AT_ONCE] = {0}, factors[BLOCKS_AT_ONCE], scales[BLOCKS_AT_ONCE];
        for (int b = 0; b < count; b++) {
            int32_t bits = largest_size(x + (first + b) * CODES);
            memcpy(&most[b], &bits, sizeof bits);
        }
        for (int b = 0; b < BLOCKS_AT_ONCE; b++) {
            factors[b] = most[b] < 1e-30f ? 0 : 127.0f / most[b];
            scales[b] = most[b] < 1e-30f ? 0 : most[b] / 127.0f;
        }
        for (int b = 0; b < count; b++, block += rows * CODED_BYTES)
            quantize_block(x + (first + b) * CODES, factors[b], scales[b], coded_row(block, rows, i));
    }
}

/* Row `row` of `count`: float[columns] to where its group lies in `prepared`. */
INLINE void quantize_row(const float *x, int64_t columns, int64_t row, int64_t count, unsigned char *prepared)
{
    int64_t begin = row / ROW_GROUP * ROW_GROUP;
    while (row >= begin + group_rows(begin, count))
        begin += group_rows(begin, count);
    const int rows = group_rows(begin, count), i = (int)(row - begin);
    const int64_t whole = columns / CODES, rest = columns % CODES;
    unsigned char *block = prepared + begin * prepared_bytes(columns);
    quantize_blocks(x, whole, block, rows, i);
    if (rest) {
        float last[CODES] = {0};
        memcpy(last, x + whole * CODES, (size_t)rest * sizeof(float));
        quantize_blocks(last, 1, block + whole * rows * CODED_BYTES, rows, i);
    }
}

#endif

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

INLINE void quantize_block(const float *x, coded to)
{
    vi32 most = {0};
    for (int i = 0; i < CODES; i += LANES) {
        vi32 size = (vi32)*(const vf32_unaligned *)(x + i) & 0x7fffffff; /* floats without sign sort as integers */
        vi32 more = size > most;
        most = (size & more) | (most & ~more);
    }
    int32_t bits = 0;
    for (int i = 0; i < LANES; i++)
        bits = most[i] > bits ? most[i] : bits;
    float largest, factor = 0;
    memcpy(&largest, &bits, sizeof largest);
    if (largest < 1e-30f)
        largest = 0; /* 127 / largest would be infinite */
    else
        factor = 127.0f / largest;
    int32_t sums[2] = {0, 0};
    for (int i = 0; i < CODES; i += LANES) {
        vi32 code = round_lanes(*(const vf32_unaligned *)(x + i) * factor);
        for (int k = 0; k < LANES; k++) {
            to.codes[i + k] = (int8_t)code[k];
            sums[(i + k) / 16] += (int8_t)code[k];
        }
    }
    *to.scale = largest / 127.0f;
    *to.sum = *to.scale * (float)(sums[0] + sums[1]);
    *to.less = -(sums[0] + sums[1]);
    *to.less_first = -sums[0];
}

/* Row `row` of `count`: float[columns] to where its group lies in `prepared`. */
INLINE void quantize_row(const float *x, int64_t columns, int64_t row, int64_t count, unsigned char *prepared)
{
    int64_t begin = row / ROW_GROUP * ROW_GROUP;
    while (row >= begin + group_rows(begin, count))
        begin += group_rows(begin, count);
    int rows = group_rows(begin, count), i = (int)(row - begin);
    unsigned char *block = prepared + begin * prepared_bytes(columns);
    for (int64_t k = 0; k < columns; k += CODES, block += rows * CODED_BYTES) {
        float rest[CODES] = {0};
        if (k + CODES > columns)
            memcpy(rest, x + k, (size_t)(columns - k) * sizeof(float));
        quantize_block(k + CODES > columns ? rest : x + k, coded_row(block, rows, i));
    }
}

#endif

/* Products of two matrices that are both computed when run, by strides. (Weights go through linear.h.) */
#ifndef MIAOTUI_MATMUL_H
#define MIAOTUI_MATMUL_H

#include "vector_math.h"

enum { MATMUL_ROWS = 4 };

/* Floats between neighbours of a[rows, depth], b[depth, columns] and y[rows, columns]; y's columns are neighbours. */
typedef struct matmul_steps {
    int64_t a_row, a_depth, b_depth, b_column, y_row;
} matmul_steps;

INLINE float dot_row(const float *a, const float *b, int64_t count)
{
    f32x16 sums = splat16(0);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        sums += load16(a + i) * load16(b + i);
    float sum = sum16(sums);
    for (; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}

/* Up to MATMUL_ROWS rows of y = a b. Every element's sum runs in an order that depends on the shapes alone. */
static void matmul_block(const float *a, const float *b, float *y, matmul_steps at, int64_t rows, int64_t columns,
                         int64_t depth)
{
    int in_rows = at.a_depth == 1 && at.b_depth == 1;
    if (at.b_column == 1 && !(in_rows && columns == 1)) {
        const float *row[MATMUL_ROWS]; /* the last one again for rows that are not there */
        for (int r = 0; r < MATMUL_ROWS; r++)
            row[r] = a + min64(r, rows - 1) * at.a_row;
        for (int64_t j = 0; j < columns; j += 16) {
            int64_t width = min64(16, columns - j);
            f32x16 sums[MATMUL_ROWS] = {{0}};
            for (int64_t k = 0; k < depth; k++) {
                const float *p = b + k * at.b_depth + j;
                f32x16 v = width == 16 ? load16(p) : load_part(p, width, 0);
                for (int r = 0; r < MATMUL_ROWS; r++)
                    sums[r] += row[r][k * at.a_depth] * v;
            }
            for (int r = 0; r < rows; r++)
                store_part(y + r * at.y_row + j, width, sums[r]);
        }
        return;
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < columns; j++) {
            const float *p = a + r * at.a_row, *q = b + j * at.b_column;
            float sum = 0;
            if (in_rows)
                sum = dot_row(p, q, depth);
            else
                for (int64_t k = 0; k < depth; k++)
                    sum += p[k * at.a_depth] * q[k * at.b_depth];
            y[r * at.y_row + j] = sum;
        }
}

#endif

/* Runs linear layers whose specs are known only here: every format by the same code, its loops not unrolled.
 * With FORMAT and GROUP: layers of one part in that format, specialised as in a model. */
#include <stdlib.h>

#ifndef FORMAT
#define UNROLL
#define INLINE static inline
#endif
#include "linear.h"

typedef struct job {
    const linear_spec *spec;
    const linear_args *args;
} job;

static void any(worker *w, void *context)
{
    const job *j = context;
#ifdef FORMAT
    linear_spec spec = *j->spec;
    spec.part[0].format = FORMAT;
    spec.part[0].group = GROUP;
    spec.parts = 1;
    spec.gated = 0;
    spec.act = ACT_NONE;
    linear(w, &spec, j->args);
#else
    linear(w, j->spec, j->args);
#endif
}

/* 0 if there was no memory for it. */
int run_linear(const linear_spec *spec, const linear_args *args, int threads)
{
    job j = {spec, args};
    struct pool *pool = pool_open(threads);
    if (!pool)
        return 0;
    int ready = pool_scratch(pool, linear_worker_bytes(spec, args->count), linear_shared_bytes(spec, args->count));
    if (ready)
        pool_run(pool, any, &j);
    pool_close(pool);
    return ready;
}

/* The integer of a format by its parts, and the bytes of a tile. */
int format_of(int bits, int biased, int scale, int offset) { return WEIGHT_INT(bits, biased, scale, offset); }
int64_t bytes_of_tile(const linear_part *part, int columns) { return tile_bytes(part, columns); }

void run_unpack(const linear_part *part, int columns, const unsigned char *weight, int64_t row, float *y)
{
    unpack_row(part, columns, weight, row, y);
}

/* One row alone: codes int8[columns], scales float and less int32[columns / 32], of whole blocks. */
void run_quantize(const float *x, int64_t columns, int8_t *codes, float *scales, int32_t *less)
{
    unsigned char block[CODED_BYTES];
    coded from = coded_row(block, 1, 0);
    for (int64_t b = 0; b < columns / CODES; b++) {
        quantize_row(x + b * CODES, CODES, 0, 1, block);
        memcpy(codes + b * CODES, from.codes, CODES);
        scales[b] = *from.scale;
        less[b] = *from.less;
    }
}

/* The dot products of 16 rows' 16 codes, uint8[4][16][4], with x int8[16], whatever the instruction set. */
void run_dot(int bits, const unsigned char *codes, const int8_t *x, int32_t *sums)
{
    for (int piece = 0; piece < PIECES; piece++) {
        vu8 vectors[4];
        for (int j = 0; j < 4; j++)
            vectors[j] = load_codes(codes + j * 64 + piece * LANE_BYTES);
        vi32 sum = dot_half(bits, (vi32){0}, vectors, x);
        for (int i = 0; i < LANES; i++)
            sums[piece * LANES + i] = sum[i];
    }
    for (int i = 0; bits == 8 && i < 16; i++)
        for (int k = 0; k < 16; k++)
            sums[i] += BYTE_BIAS * x[k];
}

/* Every float16 as float. */
void run_halves(const uint16_t *halves, int64_t count, float *y)
{
    for (int64_t i = 0; i < count; i += LANES)
        *(vf32_unaligned *)(y + i) = from_halves(halves + i);
}

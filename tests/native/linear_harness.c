/* Runs linear layers whose specs are known only here: every format by the same code, its loops not unrolled. */
#include <stdlib.h>

#define UNROLL
#define INLINE static inline
#define MIAOTUI_LINEAR_FLOAT_TILES_H /* not here: it takes long to compile */
#include "linear_spec.h"

INLINE void float_tiles(const linear_spec *spec, const linear_args *args, int p, const unsigned char *prepared,
                        range rows, range tiles)
{
    (void)spec, (void)args, (void)p, (void)prepared, (void)rows, (void)tiles;
}

INLINE void prepare_float_row(const float *x, int64_t columns, int64_t row, int64_t count, unsigned char *prepared)
{
    (void)x, (void)columns, (void)row, (void)count, (void)prepared;
}

INLINE void unpack_row_float(const linear_part *part, int columns, const unsigned char *w, int64_t row, float *y)
{
    (void)part, (void)columns, (void)w, (void)row, (void)y;
}

INLINE int64_t float_row_bytes(int columns) { return columns; }
INLINE int64_t float_block_rows(int64_t count) { return count; }

#include "linear.h"

typedef struct job {
    const linear_spec *spec;
    const linear_args *args;
} job;

static void any(worker *w, void *context)
{
    const job *j = context;
    linear(w, j->spec, j->args);
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

/* One row alone: codes int8[columns], scales float[columns / 32], with whole blocks. */
void run_quantize(const float *x, int64_t columns, int8_t *codes, float *scales, int32_t *less)
{
    for (int64_t b = 0; b < columns / CODES; b++) {
        int32_t first;
        float sum;
        quantize_block(x + b * CODES, (coded){codes + b * CODES, scales + b, &sum, less + b, &first});
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

/* aarch64 with the dot-product extension (armv8.2-a+dotprod): signed times signed, four rows at a time. */
#include <arm_neon.h>

enum { REGISTER_ROWS = 4, BYTE_BIAS = 128 };

INLINE int32x4_t four_dots(int32x4_t sum, const int8x16_t *codes, const int8_t *x)
{
    int8x16_t values = vld1q_s8(x);
    sum = vdotq_laneq_s32(sum, codes[0], values, 0);
    sum = vdotq_laneq_s32(sum, codes[1], values, 1);
    sum = vdotq_laneq_s32(sum, codes[2], values, 2);
    return vdotq_laneq_s32(sum, codes[3], values, 3);
}

INLINE vi32 dot_codes(vi32 sum, const vu8 *codes, const int8_t *x, int bits)
{
    int8x16_t same[4];
    (void)bits;
    for (int j = 0; j < 4; j++)
        same[j] = (int8x16_t)codes[j];
    return (vi32)four_dots((int32x4_t)sum, same, x);
}

INLINE vi32 dot_bytes(vi32 sum, const vu8 *codes, const int8_t *x)
{
    int8x16_t less[4];
    for (int j = 0; j < 4; j++)
        less[j] = (int8x16_t)(codes[j] ^ 128);
    return (vi32)four_dots((int32x4_t)sum, less, x);
}

INLINE vf32 from_halves(const uint16_t *p) { return (vf32)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
INLINE vi32 round_lanes(vf32 v) { return (vi32)vcvtnq_s32_f32((float32x4_t)v); }

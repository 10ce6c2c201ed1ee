/* What differs between instruction sets, chosen by the compiler's flags: registers, int8 dot products, halves.
 *
 * Each file gives, for vectors of LANE_BYTES:
 *   REGISTER_ROWS              rows of activations that a tile is multiplied with at once
 *   BYTE_BIAS                  what dot_bytes() takes off each code
 *   vi32 dot_codes(vi32 sum, const vu8 *codes, const int8_t *x, int bits)
 *        sum of lane i += the 16 products of bytes 4i .. 4i+3 of the vectors codes[0..3], each in [0, 2^bits) with
 *        bits < 8, and x[0..15], each in [-127, 127]
 *   vi32 dot_bytes(vi32 sum, const vu8 *codes, const int8_t *x)
 *        the same of codes - BYTE_BIAS, codes in [0, 256)
 *   vf32 from_halves(const uint16_t *p)
 *   vi32 round_lanes(vf32 v)   to the nearest integer, ties to even
 * All integers are the same on every instruction set. MIAOTUI_ISA_* forces a file (tests do). */
#ifndef MIAOTUI_ISA_H
#define MIAOTUI_ISA_H

#include "../base.h"

#if !defined(MIAOTUI_ISA_AVX512_VNNI) && !defined(MIAOTUI_ISA_AVX512) && !defined(MIAOTUI_ISA_AVX_VNNI) \
    && !defined(MIAOTUI_ISA_AVX2) && !defined(MIAOTUI_ISA_NEON) && !defined(MIAOTUI_ISA_PORTABLE)
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define MIAOTUI_ISA_AVX512_VNNI
#elif defined(__AVX512BW__)
#define MIAOTUI_ISA_AVX512
#elif defined(__AVXVNNI__) && defined(__F16C__)
#define MIAOTUI_ISA_AVX_VNNI
#elif defined(__AVX2__) && defined(__F16C__)
#define MIAOTUI_ISA_AVX2
#elif defined(__ARM_FEATURE_DOTPROD) && defined(__ARM_NEON)
#define MIAOTUI_ISA_NEON
#else
#define MIAOTUI_ISA_PORTABLE
#endif
#endif

#if defined(MIAOTUI_ISA_AVX512_VNNI) || defined(MIAOTUI_ISA_AVX512)
#define LANE_BYTES 64
#elif defined(MIAOTUI_ISA_AVX_VNNI) || defined(MIAOTUI_ISA_AVX2)
#define LANE_BYTES 32
#else
#define LANE_BYTES 16
#endif

enum { LANES = LANE_BYTES / 4, PIECES = 16 / LANES };

typedef uint8_t vu8 __attribute__((vector_size(LANE_BYTES)));
typedef int8_t vi8 __attribute__((vector_size(LANE_BYTES)));
typedef uint16_t vu16 __attribute__((vector_size(LANE_BYTES)));
typedef int16_t vi16 __attribute__((vector_size(LANE_BYTES)));
typedef int32_t vi32 __attribute__((vector_size(LANE_BYTES)));
typedef float vf32 __attribute__((vector_size(LANE_BYTES)));
typedef uint8_t vu8_unaligned __attribute__((vector_size(LANE_BYTES), aligned(1), may_alias));
typedef float vf32_unaligned __attribute__((vector_size(LANE_BYTES), aligned(4), may_alias));

INLINE int32_t four_bytes(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

#if defined(MIAOTUI_ISA_AVX512_VNNI)
#include "avx512_vnni.h"
#elif defined(MIAOTUI_ISA_AVX512)
#include "avx512.h"
#elif defined(MIAOTUI_ISA_AVX_VNNI)
#include "avx_vnni.h"
#elif defined(MIAOTUI_ISA_AVX2)
#include "avx2.h"
#elif defined(MIAOTUI_ISA_NEON)
#include "neon.h"
#else
#include "portable.h"
#endif

#endif

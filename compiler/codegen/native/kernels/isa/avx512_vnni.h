/* AVX-512 with VNNI: four products and their sum in one instruction, for 16 rows. */
#include <immintrin.h>

#include "avx512_common.h"

enum { REGISTER_ROWS = 8, BYTE_BIAS = 0 };

INLINE vi32 dot_bytes(vi32 sum, const vu8 *codes, const int8_t *x)
{
    __m512i s = (__m512i)sum;
    s = _mm512_dpbusd_epi32(s, (__m512i)codes[0], _mm512_set1_epi32(four_bytes(x)));
    s = _mm512_dpbusd_epi32(s, (__m512i)codes[1], _mm512_set1_epi32(four_bytes(x + 4)));
    s = _mm512_dpbusd_epi32(s, (__m512i)codes[2], _mm512_set1_epi32(four_bytes(x + 8)));
    s = _mm512_dpbusd_epi32(s, (__m512i)codes[3], _mm512_set1_epi32(four_bytes(x + 12)));
    return (vi32)s;
}

INLINE vi32 dot_codes(vi32 sum, const vu8 *codes, const int8_t *x, int bits)
{
    (void)bits;
    return dot_bytes(sum, codes, x);
}

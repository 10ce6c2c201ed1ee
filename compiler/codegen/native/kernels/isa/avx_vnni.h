/* AVX2 with VNNI: the instruction of AVX-512 on half the lanes, by its VEX code or its AVX512VL one. */
#include <immintrin.h>

#include "avx2_common.h"

enum { REGISTER_ROWS = 4, BYTE_BIAS = 0 };

INLINE __m256i four_products(__m256i sum, vu8 codes, const int8_t *x)
{
    __m256i value = _mm256_set1_epi32(four_bytes(x));
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sum, (__m256i)codes, value);
#else
    return _mm256_dpbusd_epi32(sum, (__m256i)codes, value);
#endif
}

INLINE vi32 dot_bytes(vi32 sum, const vu8 *codes, const int8_t *x)
{
    __m256i s = (__m256i)sum;
    for (int j = 0; j < 4; j++)
        s = four_products(s, codes[j], x + 4 * j);
    return (vi32)s;
}

INLINE vi32 dot_codes(vi32 sum, const vu8 *codes, const int8_t *x, int bits)
{
    (void)bits;
    return dot_bytes(sum, codes, x);
}

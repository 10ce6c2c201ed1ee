/* AVX-512BW without VNNI: products of bytes are summed in pairs in 16 bits, then in 32. */
#include <immintrin.h>

#include "avx512_common.h"

enum { REGISTER_ROWS = 8, BYTE_BIAS = 128 };

INLINE __m512i pairs(vu8 codes, const int8_t *x)
{
    return _mm512_maddubs_epi16((__m512i)codes, _mm512_set1_epi32(four_bytes(x)));
}

/* 16 bits hold four pairs of 5-bit codes (4 * 2 * 31 * 127), two of 6-bit ones. */
INLINE vi32 dot_codes(vi32 sum, const vu8 *codes, const int8_t *x, int bits)
{
    const __m512i ones = _mm512_set1_epi16(1);
    __m512i low = _mm512_add_epi16(pairs(codes[0], x), pairs(codes[1], x + 4));
    __m512i high = _mm512_add_epi16(pairs(codes[2], x + 8), pairs(codes[3], x + 12));
    if (bits <= 5)
        return sum + (vi32)_mm512_madd_epi16(_mm512_add_epi16(low, high), ones);
    return sum + (vi32)_mm512_madd_epi16(low, ones) + (vi32)_mm512_madd_epi16(high, ones);
}

/* |code| times x with the code's sign: no pair exceeds 2 * 128 * 127. */
INLINE vi32 dot_bytes(vi32 sum, const vu8 *codes, const int8_t *x)
{
    const __m512i ones = _mm512_set1_epi16(1);
    for (int j = 0; j < 4; j++) {
        __m512i code = _mm512_xor_si512((__m512i)codes[j], _mm512_set1_epi8((char)128));
        __m512i value = _mm512_set1_epi32(four_bytes(x + 4 * j));
        value = _mm512_mask_sub_epi8(value, _mm512_movepi8_mask(code), _mm512_setzero_si512(), value);
        sum += (vi32)_mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_abs_epi8(code), value), ones);
    }
    return sum;
}

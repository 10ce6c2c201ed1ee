/* AVX2: products of bytes are summed in pairs in 16 bits, then in 32. */
#include <immintrin.h>

#include "avx2_common.h"

enum { REGISTER_ROWS = 4, BYTE_BIAS = 128 };

INLINE __m256i pairs(vu8 codes, const int8_t *x)
{
    return _mm256_maddubs_epi16((__m256i)codes, _mm256_set1_epi32(four_bytes(x)));
}

/* 16 bits hold four pairs of 5-bit codes (4 * 2 * 31 * 127), two of 6-bit ones. */
INLINE vi32 dot_codes(vi32 sum, const vu8 *codes, const int8_t *x, int bits)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i low = _mm256_add_epi16(pairs(codes[0], x), pairs(codes[1], x + 4));
    __m256i high = _mm256_add_epi16(pairs(codes[2], x + 8), pairs(codes[3], x + 12));
    if (bits <= 5)
        return sum + (vi32)_mm256_madd_epi16(_mm256_add_epi16(low, high), ones);
    return sum + (vi32)_mm256_madd_epi16(low, ones) + (vi32)_mm256_madd_epi16(high, ones);
}

/* |code| times x with the code's sign: no pair exceeds 2 * 128 * 127. */
INLINE vi32 dot_bytes(vi32 sum, const vu8 *codes, const int8_t *x)
{
    const __m256i ones = _mm256_set1_epi16(1);
    for (int j = 0; j < 4; j++) {
        __m256i code = _mm256_xor_si256((__m256i)codes[j], _mm256_set1_epi8((char)128));
        __m256i value = _mm256_sign_epi8(_mm256_set1_epi32(four_bytes(x + 4 * j)), code);
        sum += (vi32)_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(code), value), ones);
    }
    return sum;
}

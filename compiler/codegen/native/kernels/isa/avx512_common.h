/* Halves and rounding with AVX-512. */
INLINE vf32 from_halves(const uint16_t *p) { return (vf32)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
INLINE vi32 round_lanes(vf32 v) { return (vi32)_mm512_cvtps_epi32((__m512)v); }

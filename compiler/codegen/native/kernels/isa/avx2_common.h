/* Halves and rounding with AVX2 and F16C. */
INLINE vf32 from_halves(const uint16_t *p) { return (vf32)_mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
INLINE vi32 round_lanes(vf32 v) { return (vi32)_mm256_cvtps_epi32((__m256)v); }

/* No particular instruction set: vectors of 16 bytes, which every compiler has or cuts up. */
enum { REGISTER_ROWS = 2, BYTE_BIAS = 128 };

/* The even and the odd bytes as 16-bit numbers; two products of bytes fit, 2 * 128 * 127. */
INLINE vi32 four_products(vi32 sum, vi16 even, vi16 odd, const int8_t *x)
{
    vi16 values = (vi16)((vi32){0} + four_bytes(x));
    vi32 pairs = (vi32)(even * (values << 8 >> 8) + odd * (values >> 8));
    return sum + (pairs << 16 >> 16) + (pairs >> 16);
}

INLINE vi32 dot_bytes(vi32 sum, const vu8 *codes, const int8_t *x)
{
    for (int j = 0; j < 4; j++) {
        vi16 code = (vi16)(codes[j] ^ 128);
        sum = four_products(sum, code << 8 >> 8, code >> 8, x + 4 * j);
    }
    return sum;
}

INLINE vi32 dot_codes(vi32 sum, const vu8 *codes, const int8_t *x, int bits)
{
    (void)bits;
    for (int j = 0; j < 4; j++) {
        vi16 code = (vi16)codes[j];
        sum = four_products(sum, code & 255, code >> 8, x + 4 * j);
    }
    return sum;
}

/* The exponent moved over by a product, which makes normal numbers of subnormal ones; infinity and NaN go on top. */
INLINE vf32 from_halves(const uint16_t *p)
{
    vi32 bits = {0}, sign;
    for (int i = 0; i < LANES; i++)
        bits[i] = p[i];
    sign = (bits & 0x8000) << 16;
    bits &= 0x7fff;
    vi32 special = (bits > 0x7bff) & 0x7f800000;
    vf32 scaled = (vf32)(bits << 13) * 0x1p112f;
    return (vf32)((vi32)scaled | special | sign);
}

/* Adding 1.5 * 2^23 rounds; hidden from the compiler, which could fuse the sum with the caller's product. */
INLINE vi32 round_lanes(vf32 v)
{
    __asm__("" : "+m"(v));
    vf32 shifted = v + 12582912.0f;
    return (vi32)shifted - 0x4b400000;
}

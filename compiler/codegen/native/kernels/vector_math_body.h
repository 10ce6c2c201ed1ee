/* Included twice by vector_math.h: each function for FLOATS = 16 lanes, then for one float.
 *
 * Polynomials are minimax fits (Lawson's iteration, in float64) of the function named beside them. */

/* e^x = 2^n e^r with |r| <= ln2 / 2; ln2 in two parts, so that n times the first is exact. 0 below 2^-126. */
INLINE FLOATS NAMED(exp)(FLOATS x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, kept in the low bits */
    FLOATS shifted = x * 1.44269504f + magic;
    FLOATS n = shifted - magic;
    FLOATS r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    FLOATS p = CONSTANT(0.00138131424f); /* (e^r - 1 - r) / r^2 */
    p = p * r + 0.00836941904f;
    p = p * r + 0.0416684568f;
    p = p * r + 0.166665148f;
    p = p * r + 0.499999931f;
    p = p * (r * r) + r + 1.0f;
    FLOATS y = FROM_BITS(TO_BITS(p) + (TO_BITS(shifted) << 23));
    y = SELECT(x < -87.3365448f, CONSTANT(0.0f), y);
    y = SELECT(x > 88.7228391f, CONSTANT(__builtin_inff()), y);
    return SELECT(x != x, x, y);
}

/* log(2^e (1 + m)) = e ln2 + log(1 + m), with 1 + m between sqrt(1/2) and sqrt(2). */
INLINE FLOATS NAMED(log)(FLOATS x)
{
    const uint32_t half_root = 0x3f3504f3; /* sqrt(1/2) */
    FLOATS small = SELECT(x < 1.17549435e-38f, CONSTANT(23.0f), CONSTANT(0.0f));
    BITS bits = TO_BITS(SELECT(x < 1.17549435e-38f, x * 8388608.0f, x)) - half_root;
    FLOATS e = TO_NUMBERS(bits >> 23) - small;
    e = SELECT(e > 255.0f, e - 512.0f, e); /* the exponent of a shifted, unsigned pattern */
    FLOATS m = FROM_BITS((bits & 0x007fffff) + half_root) - 1.0f;
    FLOATS p = CONSTANT(-0.0762306113f); /* (log(1 + m) - m) / m^2 */
    p = p * m + 0.129055034f;
    p = p * m - 0.132429812f;
    p = p * m + 0.141816349f;
    p = p * m - 0.166090566f;
    p = p * m + 0.200019846f;
    p = p * m - 0.250015848f;
    p = p * m + 0.333333255f;
    p = p * m - 0.499999883f;
    FLOATS y = e * 0.693359375f + (m + (m * m * p - e * 2.12194440e-4f));
    y = SELECT(x == __builtin_inff(), x, y);
    y = SELECT(x == 0.0f, CONSTANT(-__builtin_inff()), y);
    return SELECT(x >= 0.0f, y, CONSTANT(__builtin_nanf("")));
}

/* The magnitude of `x` and back: its sign bit moved over. */
INLINE FLOATS NAMED(magnitude)(FLOATS x) { return FROM_BITS(TO_BITS(x) & 0x7fffffff); }

INLINE FLOATS NAMED(with_sign)(FLOATS magnitude, FLOATS sign)
{
    return FROM_BITS((TO_BITS(magnitude) & 0x7fffffff) | (TO_BITS(sign) & 0x80000000));
}

/* A polynomial near 0, where 1 - 2 / (e^2x + 1) cancels. */
INLINE FLOATS NAMED(tanh)(FLOATS x)
{
    FLOATS t = NAMED(magnitude)(x), s = x * x;
    FLOATS p = CONSTANT(-0.00570497836f); /* (tanh(t) / t - 1) / t^2 in t^2 */
    p = p * s + 0.0206390787f;
    p = p * s - 0.0537397122f;
    p = p * s + 0.133314422f;
    p = p * s - 0.333332819f;
    p = p * s * t + t;
    FLOATS far = 1.0f - 2.0f / (NAMED(exp)(t + t) + 1.0f);
    return NAMED(with_sign)(SELECT(t < 0.625f, p, far), x);
}

/* A polynomial near 0; behind 0.95, 1 - e^-q with q = -log(erfc(t)), 1 in float from t = 4 on. */
INLINE FLOATS NAMED(erf)(FLOATS x)
{
    FLOATS t = NAMED(magnitude)(x), s = x * x;
    FLOATS p = CONSTANT(-0.000586207957f); /* erf(t) / t - 1 in t^2 */
    p = p * s + 0.00496750626f;
    p = p * s - 0.0267488638f;
    p = p * s + 0.112813207f;
    p = p * s - 0.376124459f;
    p = p * s + 0.128379142f;
    p = p * t + t;
    FLOATS u = SELECT(t > 4.0f, CONSTANT(4.0f), t);
    FLOATS q = CONSTANT(-0.000192426077f);
    q = q * u + 0.00300853738f;
    q = q * u - 0.0220876421f;
    q = q * u + 0.103640325f;
    q = q * u + 0.637517009f;
    q = q * u + 1.12747499f;
    q = q * u + 0.000244713587f;
    return NAMED(with_sign)(SELECT(t < 0.95f, p, 1.0f - NAMED(exp)(-q)), x);
}

INLINE FLOATS NAMED(sigmoid)(FLOATS x) { return 1.0f / (1.0f + NAMED(exp)(-x)); }
INLINE FLOATS NAMED(relu)(FLOATS x) { return SELECT(x < 0.0f, CONSTANT(0.0f), x); }
INLINE FLOATS NAMED(silu)(FLOATS x) { return x / (1.0f + NAMED(exp)(-x)); }
INLINE FLOATS NAMED(quick_gelu)(FLOATS x) { return x / (1.0f + NAMED(exp)(-1.702f * x)); }

/* x Phi(x), Phi(x) = 1/2 + x p(x^2) up to 5.3, 1 in float from there: one polynomial, cheaper than erf's
 * two. It is in u = 2 (x / 5.3)^2 - 1, between -1 and 1, where its terms do not cancel. */
INLINE FLOATS NAMED(gelu)(FLOATS x)
{
    FLOATS u = x * x * 0.0711997152f - 1.0f;
    FLOATS p = CONSTANT(0.000283629893f);
    p = p * u - 0.000764565767f;
    p = p * u + 0.000732079773f;
    p = p * u - 0.00109594776f;
    p = p * u + 0.00313492909f;
    p = p * u - 0.00584955039f;
    p = p * u + 0.00882817017f;
    p = p * u - 0.0131854739f;
    p = p * u + 0.0189258359f;
    p = p * u - 0.0252983009f;
    p = p * u + 0.0320795203f;
    p = p * u - 0.039588931f;
    p = p * u + 0.0492641631f;
    p = p * u - 0.0665185058f;
    p = p * u + 0.133392563f;
    FLOATS y = x * (x * p + 0.5f);
    y = SELECT(x > 5.3f, x, y);
    return SELECT(x < -5.3f, CONSTANT(-0.0f), y);
}

/* x / 2 * (1 + tanh u) = x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE FLOATS NAMED(gelu_tanh)(FLOATS x)
{
    return x / (1.0f + NAMED(exp)(x * (-1.59576912f - 0.0713548163f * x * x)));
}

#undef FLOATS
#undef BITS
#undef NAMED
#undef TO_BITS
#undef FROM_BITS
#undef SELECT
#undef CONSTANT
#undef TO_NUMBERS

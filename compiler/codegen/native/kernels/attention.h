/* Attention, flash-style, over a cache or not, with rotary embedding and q/k norm (miaotui FusedAttention). */
#ifndef MIAOTUI_ATTENTION_H
#define MIAOTUI_ATTENTION_H

#include <math.h>

#include "base.h"
#include "pool.h"

typedef enum { ROTARY_NONE, ROTARY_HALF, ROTARY_INTERLEAVED } rotary_kind;
typedef enum { CACHE_NONE, CACHE_F32, CACHE_F16, CACHE_I8 } cache_kind;

/* What is fixed when the code is written. `pairs`: rotated pairs of a head, 0 without rotary. `window`: 0 is none.
 * An int8 cache row is `size` codes, then their float scale; its last axis has size + 4 bytes. */
typedef struct attention_spec {
    int heads, kv_heads, size, value_size;
    float scale, softcap, epsilon;
    int window, causal;
    rotary_kind rotary;
    int pairs;
    cache_kind cache;
} attention_spec;

/* Floats (batch, head, token) apart; the last axis is contiguous. 0: the axis is broadcast. */
typedef struct strides {
    int64_t batch, head, token;
} strides;

/* query, key, value, y: [batch, heads, tokens or keys, size] by their strides. Without a cache there are `keys`
 * keys; with one, `tokens` new ones are written behind lengths[row], into past_key and past_value, which are
 * [batch, kv heads, capacity, width], contiguous, written in place. bias: float or NULL, [.., tokens, keys] with
 * `bias_key` 0 or 1 for its last axis. cos, sin: rows of `pairs` floats. query_norm, key_norm: [size] or NULL. */
typedef struct attention_args {
    int64_t batch, tokens, keys, capacity;
    const float *query, *key, *value;
    strides query_at, key_at, value_at;
    void *past_key, *past_value;
    const int64_t *lengths;
    const float *bias;
    strides bias_at;
    int64_t bias_key;
    const float *cos, *sin;
    int64_t angle_batch, angle_token; /* floats between rows of cos and sin */
    const float *query_norm, *key_norm;
    float *y;
    strides y_at;
} attention_args;

#include "attention_cache.h"

/* What a query or key row goes through before the dot product: RMS norm, rotation; all times `factor`. */
INLINE void turn_row(const attention_spec *spec, const attention_args *args, const float *norm, const float *x,
                     int64_t row, int64_t token, float factor, float *y)
{
    int size = spec->size, pairs = args->cos ? spec->pairs : 0;
    if (norm) {
        float sum = 0;
        for (int i = 0; i < size; i++)
            sum += x[i] * x[i];
        float inverse = 1 / sqrtf(sum / (float)size + spec->epsilon);
        for (int i = 0; i < size; i++)
            y[i] = x[i] * inverse * norm[i] * factor;
    } else {
        for (int i = 0; i < size; i++)
            y[i] = x[i] * factor;
    }
    if (!pairs)
        return;
    const float *cos = args->cos + row * args->angle_batch + token * args->angle_token;
    const float *sin = args->sin + row * args->angle_batch + token * args->angle_token;
    int step = spec->rotary == ROTARY_INTERLEAVED ? 2 : 1, apart = spec->rotary == ROTARY_INTERLEAVED ? 1 : pairs;
    for (int i = 0; i < pairs; i++) {
        float a = y[i * step], b = y[i * step + apart];
        y[i * step] = a * cos[i] - b * sin[i];
        y[i * step + apart] = b * cos[i] + a * sin[i];
    }
}

INLINE size_t attention_worker_bytes(const attention_spec *spec, const attention_args *args)
{
    (void)args;
    return (size_t)(2 * spec->size + 2 * spec->value_size) * sizeof(float);
}

/* Without a cache, keys that are normed or rotated are written down once. */
INLINE size_t attention_shared_bytes(const attention_spec *spec, const attention_args *args)
{
    if (spec->cache != CACHE_NONE || (!args->key_norm && !args->cos))
        return 0;
    return (size_t)(args->batch * spec->kv_heads * args->keys * spec->size) * sizeof(float);
}

INLINE void write_new_keys(worker *w, const attention_spec *spec, const attention_args *args)
{
    int64_t fresh = spec->cache == CACHE_NONE ? args->keys : args->tokens;
    int64_t key_bytes = cache_row_bytes(spec->cache, spec->size);
    int64_t value_bytes = cache_row_bytes(spec->cache, spec->value_size);
    range r = share(w, args->batch * spec->kv_heads * fresh, 1);
    for (int64_t i = r.begin; i < r.end; i++) {
        int64_t token = i % fresh, plane = i / fresh, head = plane % spec->kv_heads, row = plane / spec->kv_heads;
        const float *key = args->key + row * args->key_at.batch + head * args->key_at.head + token * args->key_at.token;
        if (spec->cache == CACHE_NONE) {
            turn_row(spec, args, args->key_norm, key, row, token, 1, (float *)w->shared + i * spec->size);
            continue;
        }
        const float *value =
            args->value + row * args->value_at.batch + head * args->value_at.head + token * args->value_at.token;
        int64_t at = plane * args->capacity + args->lengths[row] + token;
        turn_row(spec, args, args->key_norm, key, row, token, 1, (float *)w->scratch);
        write_cache_row(spec->cache, (float *)w->scratch, spec->size, (unsigned char *)args->past_key + at * key_bytes);
        write_cache_row(spec->cache, value, spec->value_size, (unsigned char *)args->past_value + at * value_bytes);
    }
}

/* All workers call it together; it ends without a barrier. Tokens behind the capacity were refused before. */
INLINE void attention(worker *w, const attention_spec *spec, const attention_args *args)
{
    int cached = spec->cache != CACHE_NONE, turned = !cached && (args->key_norm || args->cos);
    int size = spec->size, value_size = spec->value_size, group = spec->heads / spec->kv_heads;
    if (cached || turned) {
        write_new_keys(w, spec, args);
        barrier(w);
    }
    float *q = (float *)w->scratch, *k = q + size, *v = k + size, *sum = v + value_size;
    float scale = spec->scale != 0 ? spec->scale : 1 / sqrtf((float)size);
    range r = share(w, args->batch * spec->heads * args->tokens, 1);
    for (int64_t i = r.begin; i < r.end; i++) {
        int64_t token = i % args->tokens, head = i / args->tokens % spec->heads, row = i / args->tokens / spec->heads;
        int64_t kv = head / group, plane = row * spec->kv_heads + kv, place = token + (cached ? args->lengths[row] : 0);
        int64_t end = cached || spec->causal ? place + 1 : args->keys;
        if (!cached)
            end = min64(end, args->keys);
        turn_row(spec, args, args->query_norm,
                 args->query + row * args->query_at.batch + head * args->query_at.head + token * args->query_at.token,
                 row, token, scale, q);
        float top = -INFINITY, total = 0;
        memset(sum, 0, (size_t)value_size * sizeof(float));
        for (int64_t j = spec->window ? max64(0, place - spec->window + 1) : 0; j < end; j++) {
            if (cached) {
                int64_t at = plane * args->capacity + j;
                read_cache_row(spec->cache,
                               (unsigned char *)args->past_key + at * cache_row_bytes(spec->cache, size), size, k);
                read_cache_row(spec->cache,
                               (unsigned char *)args->past_value + at * cache_row_bytes(spec->cache, value_size),
                               value_size, v);
            } else {
                const float *key =
                    turned ? (float *)w->shared + (plane * args->keys + j) * size
                           : args->key + row * args->key_at.batch + kv * args->key_at.head + j * args->key_at.token;
                memcpy(k, key, (size_t)size * sizeof(float));
                memcpy(v, args->value + row * args->value_at.batch + kv * args->value_at.head + j * args->value_at.token,
                       (size_t)value_size * sizeof(float));
            }
            float score = 0;
            for (int d = 0; d < size; d++)
                score += q[d] * k[d];
            if (spec->softcap != 0)
                score = spec->softcap * tanhf(score / spec->softcap);
            if (args->bias)
                score += args->bias[row * args->bias_at.batch + head * args->bias_at.head +
                                    token * args->bias_at.token + j * args->bias_key];
            if (score == -INFINITY)
                continue;
            if (score > top) {
                float shrink = expf(top - score);
                total *= shrink;
                for (int d = 0; d < value_size; d++)
                    sum[d] *= shrink;
                top = score;
            }
            float weight = expf(score - top);
            total += weight;
            for (int d = 0; d < value_size; d++)
                sum[d] += weight * v[d];
        }
        float *y = args->y + row * args->y_at.batch + head * args->y_at.head + token * args->y_at.token;
        for (int d = 0; d < value_size; d++)
            y[d] = total > 0 ? sum[d] / total : 0;
    }
}

#endif

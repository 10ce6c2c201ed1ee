/* Queries and keys before attention: normed, rotated; new keys and values into the cache. */
#ifndef MIAOTUI_ATTENTION_ROWS_H
#define MIAOTUI_ATTENTION_ROWS_H

#include "attention_cache.h"
#include "norm.h"

/* Rotate the pairs of a row in place; they are neighbours or one of each half. */
INLINE void rotate_row(rotary_kind kind, int pairs, const float *cos, const float *sin, float *restrict y)
{
    if (kind == ROTARY_INTERLEAVED) {
        for (int i = 0; i < pairs; i++) {
            float a = y[2 * i], b = y[2 * i + 1];
            y[2 * i] = a * cos[i] - b * sin[i];
            y[2 * i + 1] = b * cos[i] + a * sin[i];
        }
        return;
    }
    int i = 0;
    for (; i + 16 <= pairs; i += 16) {
        f32x16 a = load16(y + i), b = load16(y + pairs + i), c = load16(cos + i), s = load16(sin + i);
        store16(y + i, a * c - b * s);
        store16(y + pairs + i, b * c + a * s);
    }
    for (; i < pairs; i++) {
        float a = y[i], b = y[pairs + i];
        y[i] = a * cos[i] - b * sin[i];
        y[pairs + i] = b * cos[i] + a * sin[i];
    }
}

/* What a query or key goes through before the dot product: norm (or NULL), rotation; all times `factor`. */
INLINE void turn_row(const attention_spec *spec, const attention_args *args, const float *norm,
                     const float *x, int64_t row, int64_t token, float factor, float *y)
{
    if (norm) {
        norm_row(NORM_RMS, x, y, spec->size, norm, NULL, spec->epsilon);
        for (int i = 0; i < spec->size; i++)
            y[i] *= factor;
    } else {
        for (int i = 0; i < spec->size; i++)
            y[i] = x[i] * factor;
    }
    int64_t angle = row * args->angle_batch + token * args->angle_token;
    if (spec->pairs)
        rotate_row(spec->rotary, spec->pairs, args->cos + angle, args->sin + angle, y);
}

INLINE float scale_of(const attention_spec *spec)
{
    return spec->scale != 0 ? spec->scale : 1 / __builtin_sqrtf((float)spec->size);
}

/* Whether keys are written down, normed and rotated, although there is no cache. */
INLINE int keys_are_turned(const attention_spec *spec)
{
    return spec->cache == CACHE_NONE && (spec->key_norm || spec->pairs);
}

INLINE size_t turned_bytes(const attention_spec *spec, const attention_args *args)
{
    return keys_are_turned(spec)
               ? (size_t)(args->batch * spec->kv_heads * args->keys * spec->size) * sizeof(float)
               : 0;
}

/* The new keys and values of (row, head), tokens `begin` to `end`, into the cache. */
INLINE void write_new_rows(const attention_spec *spec, const attention_args *args, int64_t row, int64_t head,
                           int64_t begin, int64_t end, float *scratch)
{
    int64_t at = (row * spec->kv_heads + head) * args->capacity + args->lengths[row];
    int64_t key_bytes = row_width(spec->cache, spec->size);
    int64_t value_bytes = row_width(spec->cache, spec->value_size);
    for (int64_t token = begin; token < end; token++) {
        turn_row(spec, args, args->key_norm, args->key + offset_at(args->key_at, row, head, token), row,
                 token, 1, scratch);
        write_row(spec->cache, scratch, spec->size,
                  (unsigned char *)args->past_key + (at + token) * key_bytes);
        write_row(spec->cache, args->value + offset_at(args->value_at, row, head, token), spec->value_size,
                  (unsigned char *)args->past_value + (at + token) * value_bytes);
    }
}

/* This worker's part of the new keys and values: into the cache, or keys alone into the shared scratch. */
INLINE void write_keys(worker *w, const attention_spec *spec, const attention_args *args)
{
    int64_t fresh = spec->cache == CACHE_NONE ? args->keys : args->tokens, heads = spec->kv_heads;
    range r = share(w, args->batch * heads * fresh, 1);
    for (int64_t i = r.begin; i < r.end; i++) {
        int64_t token = i % fresh, head = i / fresh % heads, row = i / fresh / heads;
        if (spec->cache == CACHE_NONE)
            turn_row(spec, args, args->key_norm, args->key + offset_at(args->key_at, row, head, token), row,
                     token, 1, (float *)w->shared + i * spec->size);
        else
            write_new_rows(spec, args, row, head, token, token + 1, (float *)w->scratch);
    }
}

/* The keys and values of a head of all rows. */
INLINE rows_at keys_of(const worker *w, const attention_spec *spec, const attention_args *args, int64_t row,
                       int64_t head)
{
    int64_t plane = row * spec->kv_heads + head, bytes = row_width(spec->cache, spec->size);
    if (spec->cache != CACHE_NONE)
        return (rows_at){(unsigned char *)args->past_key + plane * args->capacity * bytes, bytes,
                         spec->cache};
    if (keys_are_turned(spec))
        return (rows_at){w->shared + plane * args->keys * bytes, bytes, CACHE_F32};
    const float *first = args->key + offset_at(args->key_at, row, head, 0);
    return (rows_at){(const unsigned char *)first, args->key_at.token * (int64_t)sizeof(float), CACHE_F32};
}

INLINE rows_at values_of(const attention_spec *spec, const attention_args *args, int64_t row, int64_t head)
{
    int64_t plane = row * spec->kv_heads + head, bytes = row_width(spec->cache, spec->value_size);
    if (spec->cache != CACHE_NONE)
        return (rows_at){(unsigned char *)args->past_value + plane * args->capacity * bytes, bytes,
                         spec->cache};
    const float *first = args->value + offset_at(args->value_at, row, head, 0);
    return (rows_at){(const unsigned char *)first, args->value_at.token * (int64_t)sizeof(float), CACHE_F32};
}

#endif

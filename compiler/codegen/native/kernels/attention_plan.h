/* How an attention's work is cut into items: fixed by its sizes, never by the number of workers. */
#ifndef MIAOTUI_ATTENTION_PLAN_H
#define MIAOTUI_ATTENTION_PLAN_H

#include "attention_rows.h"

enum {
    FEW_QUERIES = 8,  /* up to this many query rows of a kv head are multiplied row by row */
    FEW_KEYS = 256,   /* keys of an item then */
    TILE_ROWS = 192,  /* query rows of an item otherwise, if a token has no more */
    TILE_KEYS = 64,   /* keys that are worked on at once */
    SPLIT_KEYS = 1024 /* keys of an item whose queries are one block */
};

/* Query row m of an item is head m % group of token m / group of its block. */
typedef struct attention_plan {
    int64_t group;  /* query heads of a kv head */
    int64_t block;  /* tokens of an item */
    int64_t blocks; /* of a row of the batch */
    int64_t split;  /* keys of an item; with several blocks all of them */
    int64_t chunks; /* at most, of a block */
    int few;
} attention_plan;

/* One item: tokens `begin` to `end` of a row, with its keys from `first` to `last`. */
typedef struct attention_item {
    int64_t row, head, begin, end, first, last;
    int64_t chunk, chunks; /* its number, counted from key 0; items that share its queries */
    int64_t sums;          /* the place of its partial sums among those of all */
} attention_item;

INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

INLINE attention_plan plan_attention(const attention_spec *spec, const attention_args *args)
{
    attention_plan p;
    int64_t most = spec->cache == CACHE_NONE ? args->keys : args->capacity;
    p.group = spec->heads / spec->kv_heads;
    p.few = args->tokens * p.group <= FEW_QUERIES;
    p.block = p.few ? args->tokens : max64(1, TILE_ROWS / p.group);
    p.blocks = p.block ? (args->tokens + p.block - 1) / p.block : 0;
    if (p.blocks) /* even ones */
        p.block = (args->tokens + p.blocks - 1) / p.blocks;
    p.split = p.few ? FEW_KEYS : SPLIT_KEYS;
    p.chunks = p.blocks == 1 ? (most + p.split - 1) / p.split : 1;
    return p;
}

/* Query rows of an item, at most. */
INLINE int64_t plan_rows(const attention_plan *p) { return p->block * p->group; }

/* Which worker does the work in the middle of which `before` is done. */
INLINE int is_mine(const worker *w, int64_t before, int64_t work, int64_t total)
{
    return (before + work / 2) * w->count / total == w->index;
}

/* The position of a row's first token. */
INLINE int64_t base_of(const attention_spec *spec, const attention_args *args, int64_t row)
{
    return spec->cache == CACHE_NONE ? 0 : args->lengths[row];
}

/* The keys that the token at `place` sees. */
INLINE range seen_keys(const attention_spec *spec, const attention_args *args, int64_t place)
{
    int cached = spec->cache != CACHE_NONE;
    range r = {spec->window ? max64(0, place - spec->window + 1) : 0, args->keys};
    if (cached || spec->causal)
        r.end = cached ? place + 1 : min64(place + 1, args->keys);
    r.begin = min64(r.begin, r.end);
    return r;
}

/* The keys that tokens `begin` to `end` see together. */
INLINE range block_keys(const attention_spec *spec, const attention_args *args, int64_t row, int64_t begin,
                        int64_t end)
{
    int64_t base = base_of(spec, args, row);
    range r = {seen_keys(spec, args, base + begin).begin, seen_keys(spec, args, base + end - 1).end};
    r.begin = min64(r.begin, r.end);
    return r;
}

/* Chunks of a block lie at multiples of `split`, wherever its keys begin. */
INLINE range block_chunks(const attention_plan *p, range keys)
{
    range r = {keys.begin / p->split, (keys.end + p->split - 1) / p->split};
    if (p->blocks > 1 || r.end <= r.begin)
        r = (range){0, 1};
    return r;
}

/* What `tokens` cost with `keys`, in multiplications; an item of its own costs something, too. */
INLINE int64_t work_of(const attention_spec *spec, int64_t tokens, int64_t keys)
{
    return tokens * (keys + 8) * (spec->size + spec->value_size);
}

INLINE attention_item item_of(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                              int64_t row, int64_t head, int64_t block, int64_t chunk)
{
    attention_item item = {.row = row, .head = head, .begin = block * p->block};
    item.end = min64(item.begin + p->block, args->tokens);
    range keys = block_keys(spec, args, row, item.begin, item.end), chunks = block_chunks(p, keys);
    item.chunks = chunks.end - chunks.begin;
    item.chunk = chunks.begin + chunk;
    item.first = keys.begin;
    item.last = keys.end;
    if (item.chunks > 1) {
        item.first = max64(item.first, item.chunk * p->split);
        item.last = min64(item.last, (item.chunk + 1) * p->split);
    }
    item.sums = (row * spec->kv_heads + head) * p->chunks + chunk;
    return item;
}

/* The new keys and values that lie within an item's keys, into the cache: so no barrier is needed before it.
 */
INLINE void write_item_rows(const attention_spec *spec, const attention_args *args,
                            const attention_item *item, float *scratch)
{
    int64_t base = args->lengths[item->row];
    write_new_rows(spec, args, item->row, item->head, max64(item->first - base, 0), item->last - base,
                   scratch);
}

/* What all items of one head of a row cost. */
INLINE int64_t head_work(const attention_spec *spec, const attention_args *args, const attention_plan *p,
                         int64_t row)
{
    int64_t sum = 0;
    for (int64_t block = 0; block < p->blocks; block++)
        for (int64_t chunk = 0, chunks = 1; chunk < chunks; chunk++) {
            attention_item item = item_of(spec, args, p, row, 0, block, chunk);
            sum += work_of(spec, item.end - item.begin, item.last - item.first);
            chunks = item.chunks;
        }
    return sum;
}

#endif

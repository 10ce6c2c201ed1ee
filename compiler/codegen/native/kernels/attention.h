/* Attention, flash-style, over a cache or not, with rotary embedding and q/k norm (miaotui FusedAttention).
 */
#ifndef MIAOTUI_ATTENTION_H
#define MIAOTUI_ATTENTION_H

#include "attention_codes.h"
#include "attention_few.h"
#include "attention_tiles.h"
#include "pool.h"

INLINE size_t attention_worker_bytes(const attention_spec *spec, const attention_args *args)
{
    attention_plan p = plan_attention(spec, args);
    int64_t rows = plan_rows(&p), own = p.few ? few_floats(spec, rows) : tile_floats(spec, rows);
    return (size_t)own * sizeof(float);
}

/* Turned keys, then the partial sums of items that share queries. */
INLINE size_t attention_shared_bytes(const attention_spec *spec, const attention_args *args)
{
    attention_plan p = plan_attention(spec, args);
    int64_t sums =
        p.chunks > 1 ? args->batch * spec->kv_heads * p.chunks * sums_floats(spec, plan_rows(&p)) : 0;
    return turned_bytes(spec, args) + (size_t)sums * sizeof(float);
}

INLINE void many_item(worker *w, const attention_spec *spec, const attention_args *args,
                      const attention_plan *p, const attention_item *item, float *partial)
{
    tile_state s = tile_memory(spec, (float *)w->scratch, (item->end - item->begin) * p->group);
    if (spec->cache != CACHE_NONE && p->blocks == 1)
        write_item_rows(spec, args, item, s.stage);
    tile_begin(spec, &s);
    if (item->chunks == 1) /* lines that the output will be written to */
        for (int64_t m = 0; m < s.rows; m++)
            for (int i = 0; i < spec->value_size; i += 16)
                __builtin_prefetch(output_row(args, p, item, m) + i, 1);
    rows_at keys = keys_of(w, spec, args, item->row, item->head);
    rows_at values = values_of(spec, args, item->row, item->head);
    if (uses_codes(spec))
        coded_item(spec, args, p, item, &s, keys, values);
    else
        tile_item(spec, args, p, item, &s, keys, values);
    tile_output(spec, args, p, item, &s, partial);
}

/* The items of this worker. Returns whether some shared their queries. */
INLINE int attention_items(worker *w, const attention_spec *spec, const attention_args *args,
                           const attention_plan *p, float *sums)
{
    int64_t total = 0, before = 0;
    int shared = 0;
    for (int64_t row = 0; row < args->batch; row++)
        total += head_work(spec, args, p, row) * spec->kv_heads;
    for (int64_t i = 0; i < args->batch * spec->kv_heads * p->blocks; i++)
        for (int64_t chunk = 0, chunks = 1; chunk < chunks; chunk++) {
            attention_item item = item_of(spec, args, p, i / p->blocks / spec->kv_heads,
                                          i / p->blocks % spec->kv_heads, i % p->blocks, chunk);
            int64_t work = work_of(spec, item.end - item.begin, item.last - item.first);
            float *partial = sums + item.sums * sums_floats(spec, plan_rows(p));
            if (!is_mine(w, before, work, total))
                ;
            else if (p->few)
                few_item(w, spec, args, p, &item, partial);
            else
                many_item(w, spec, args, p, &item, partial);
            before += work;
            chunks = item.chunks;
            shared |= chunks > 1;
        }
    return shared;
}

/* The output of queries that several items shared. */
INLINE void merge_items(worker *w, const attention_spec *spec, const attention_args *args,
                        const attention_plan *p, float *sums)
{
    int64_t rows = args->tokens * p->group;
    range r = share(w, args->batch * spec->kv_heads * rows, 1);
    for (int64_t i = r.begin; i < r.end; i++) {
        int64_t m = i % rows, plane = i / rows;
        attention_item item = item_of(spec, args, p, plane / spec->kv_heads, plane % spec->kv_heads, 0, 0);
        if (item.chunks > 1)
            merge_row(spec, sums + item.sums * sums_floats(spec, plan_rows(p)), plan_rows(p), item.chunks, m,
                      output_row(args, p, &item, m));
    }
}

/* All workers call it together; it ends without a barrier. Tokens behind the capacity were refused before. */
INLINE void attention(worker *w, const attention_spec *spec, const attention_args *args)
{
    if (!args->batch || !args->tokens)
        return;
    attention_plan p = plan_attention(spec, args);
    float *sums = (float *)(w->shared + turned_bytes(spec, args));
    if (keys_are_turned(spec) || (spec->cache != CACHE_NONE && p.blocks > 1)) {
        write_keys(w, spec, args);
        barrier(w);
    }
    if (attention_items(w, spec, args, &p, sums)) {
        barrier(w);
        merge_items(w, spec, args, &p, sums);
    }
}

#endif

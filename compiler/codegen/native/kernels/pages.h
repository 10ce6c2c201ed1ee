/* Weights in large pages. A weight file is mapped and read when needed, so that a model is open at once. But it
 * lies in pages of 4 KB, and every token reads all of it: where a miss of the TLB is dear, in virtual machines
 * above all, that is a quarter of the time. So a thread copies the file into memory with pages of 2 MB, and what
 * is copied takes the file's place between two runs. */
#ifndef MIAOTUI_PAGES_H
#define MIAOTUI_PAGES_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu.h"

enum { LARGE_PAGE = 2 << 20, COPIED_AT_ONCE = 4 * LARGE_PAGE };

/* The weights at `at`, `size` bytes in whole large pages; the first `copied` of them lie at `copy`, the first
 * `placed` have taken the file's place. */
typedef struct pages {
    unsigned char *at, *copy;
    size_t size, placed;
    _Atomic size_t copied;
    _Atomic int is_closing;
    int is_running, file;
    pthread_t thread;
} pages;

static inline size_t whole_pages(size_t bytes) { return bytes / LARGE_PAGE * LARGE_PAGE; }

/* Ask for large pages in what lies whole within this memory. */
static inline void ask_for_large(void *memory, size_t bytes)
{
#ifdef MADV_HUGEPAGE
    uintptr_t begin = ((uintptr_t)memory + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
    uintptr_t end = ((uintptr_t)memory + bytes) / LARGE_PAGE * LARGE_PAGE;
    if (memory && end > begin)
        madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

/* Addresses of `bytes` from a whole large page on, nothing behind them; NULL if there are none. */
static inline unsigned char *large_addresses(size_t bytes)
{
    size_t all = bytes + LARGE_PAGE;
    unsigned char *found = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED)
        return NULL;
    unsigned char *begin = found + (LARGE_PAGE - (uintptr_t)found % LARGE_PAGE) % LARGE_PAGE;
    unsigned char *end = begin + (bytes + 4095) / 4096 * 4096;
    if (begin > found)
        munmap(found, (size_t)(begin - found));
    if (found + all > end)
        munmap(end, (size_t)(found + all - end));
    return begin;
}

/* Whether the system gives large pages, and copies of `bytes` leave at least as much memory free again. */
static inline int can_copy(size_t bytes)
{
    char line[128] = "";
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
    if (!file)
        return 0;
    int is_on = fgets(line, sizeof line, file) && !strstr(line, "[never]");
    fclose(file);
    unsigned long long available = 0;
    file = fopen("/proc/meminfo", "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %llu kB", &available) == 1)
            break;
    if (file)
        fclose(file);
    return is_on && available * 1024 / 2 > bytes && !is_hidden("LARGE-PAGES");
}

static inline void *copy_pages(void *context)
{
    pages *p = context;
    for (size_t done = 0; done < p->size && !atomic_load(&p->is_closing);) {
        size_t part = p->size - done < COPIED_AT_ONCE ? p->size - done : COPIED_AT_ONCE;
        memcpy(p->copy + done, p->at + done, part);
        done += part;
        atomic_store_explicit(&p->copied, done, memory_order_release);
    }
    return NULL;
}

/* Map `size` bytes of a file, and begin to copy them; NULL if they can't be mapped. `file` stays the caller's. */
static inline unsigned char *pages_map(pages *p, int file, size_t size)
{
    p->at = large_addresses(size);
    if (!p->at)
        return NULL;
    if (mmap(p->at, size, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED) {
        munmap(p->at, size);
        return NULL;
    }
    p->size = whole_pages(size);
    if (!p->size || !can_copy(p->size))
        return p->at;
    p->copy = large_addresses(p->size);
    if (!p->copy)
        return p->at;
    if (mprotect(p->copy, p->size, PROT_READ | PROT_WRITE)) {
        munmap(p->copy, p->size);
        p->copy = NULL;
        return p->at;
    }
    ask_for_large(p->copy, p->size);
    p->file = dup(file);
    p->is_running = p->file >= 0 && !pthread_create(&p->thread, NULL, copy_pages, p);
    return p->at;
}

/* Put what is copied by now in the file's place; called where no run reads the weights. */
static inline void pages_place(pages *p)
{
    size_t copied = atomic_load_explicit(&p->copied, memory_order_acquire);
    if (copied <= p->placed || (copied < p->size && copied - p->placed < 4 * COPIED_AT_ONCE))
        return;
    unsigned char *from = p->copy + p->placed, *to = p->at + p->placed;
    size_t part = copied - p->placed;
    mprotect(from, part, PROT_READ);
    if (mremap(from, part, part, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) /* it may have cut the file off */
        mmap(to, part, PROT_READ, MAP_PRIVATE | MAP_FIXED, p->file, (off_t)p->placed);
    p->placed = copied;
}

/* Forget the weights, `size` bytes as they were mapped. */
static inline void pages_close(pages *p, size_t size)
{
    atomic_store(&p->is_closing, 1);
    if (p->is_running) {
        pthread_join(p->thread, NULL);
        close(p->file);
    }
    if (p->copy && p->placed < p->size)
        munmap(p->copy + p->placed, p->size - p->placed);
    if (p->at)
        munmap(p->at, size);
}

#endif

/* What the machine can do at best: bytes read per second of a pool, int8 and float operations per second. */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stddef.h>
#include <time.h>

typedef struct job {
    const char *begin;
    size_t bytes;
    int64_t rounds;
    int kind; /* 0 reads, 1 int8 dot products, 2 float multiply-adds */
    double seconds;
    int64_t sum;
    pthread_barrier_t *start;
} job;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int64_t read_all(const char *p, size_t bytes)
{
    __m512i sum[8];
    for (int i = 0; i < 8; i++)
        sum[i] = _mm512_setzero_si512();
    for (size_t at = 0; at + 512 <= bytes; at += 512)
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            _mm_prefetch(p + at + 4096 + 64 * i, _MM_HINT_T0);
            sum[i] = _mm512_add_epi64(sum[i], _mm512_load_si512(p + at + 64 * i));
        }
    for (int i = 1; i < 8; i++)
        sum[0] = _mm512_add_epi64(sum[0], sum[i]);
    return _mm512_reduce_add_epi64(sum[0]);
}

static int64_t dots(int64_t rounds)
{
    __m512i sum[16], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(1);
    for (int i = 0; i < 16; i++)
        sum[i] = _mm512_set1_epi32(i);
    for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            sum[i] = _mm512_dpbusd_epi32(sum[i], a, b);
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    for (int i = 1; i < 16; i++)
        sum[0] = _mm512_add_epi32(sum[0], sum[i]);
    return _mm512_reduce_add_epi32(sum[0]);
}

static int64_t fmas(int64_t rounds)
{
    __m512 sum[16], a = _mm512_set1_ps(1e-3f), b = _mm512_set1_ps(1.0f);
    for (int i = 0; i < 16; i++)
        sum[i] = _mm512_set1_ps((float)i);
    for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            sum[i] = _mm512_fmadd_ps(a, b, sum[i]);
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    for (int i = 1; i < 16; i++)
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    return (int64_t)_mm512_reduce_add_ps(sum[0]);
}

static void *work(void *argument)
{
    job *j = argument;
    pthread_barrier_wait(j->start);
    double begin = now();
    if (j->kind == 0)
        for (int64_t r = 0; r < j->rounds; r++)
            j->sum += read_all(j->begin, j->bytes);
    else
        j->sum = j->kind == 1 ? dots(j->rounds) : fmas(j->rounds);
    j->seconds = now() - begin;
    return NULL;
}

/* Seconds of the slowest of `threads` threads: `rounds` reads of its part of `pool`, or loops of 16 operations. */
double limit_seconds(int kind, const char *pool, size_t bytes, int64_t rounds, int threads)
{
    pthread_t ids[64];
    job jobs[64];
    pthread_barrier_t start;
    if (threads < 1 || threads > 64)
        return -1;
    pthread_barrier_init(&start, NULL, (unsigned)threads);
    size_t part = bytes / (size_t)threads / 512 * 512;
    for (int t = 0; t < threads; t++) {
        jobs[t] = (job){pool + part * (size_t)t, part, rounds, kind, 0, 0, &start};
        pthread_create(&ids[t], NULL, work, &jobs[t]);
    }
    double slowest = 0;
    for (int t = 0; t < threads; t++) {
        pthread_join(ids[t], NULL);
        slowest = jobs[t].seconds > slowest ? jobs[t].seconds : slowest;
    }
    pthread_barrier_destroy(&start);
    return slowest;
}

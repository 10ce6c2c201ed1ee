/* Whether this CPU, and its operating system, has the instructions that a library was built with. */
#ifndef MIAOTUI_CPU_H
#define MIAOTUI_CPU_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct cpu_feature {
    const char *name;
    int is_there;
} cpu_feature;

enum { CPU_FEATURES = 16 };

#if defined(__x86_64__)
#include <cpuid.h>

static inline uint64_t saved_registers(void)
{
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Fill `found`; returns how many features this architecture knows. */
static inline int cpu_features(cpu_feature *found)
{
    uint32_t a = 0, b = 0, c = 0, d = 0, basic = 0, more = 0, more_b = 0, more_c = 0, second_a = 0, lzcnt = 0;
    if (__get_cpuid(1, &a, &b, &c, &d))
        basic = c;
    if (__get_cpuid_count(7, 0, &more, &more_b, &more_c, &d) && more >= 1)
        __get_cpuid_count(7, 1, &second_a, &b, &c, &d);
    if (__get_cpuid(0x80000001, &a, &b, &c, &d))
        lzcnt = c >> 5 & 1;
    uint64_t saved = basic >> 27 & 1 ? saved_registers() : 0;
    int avx = (saved & 0x06) == 0x06 && (basic >> 28 & 1), avx512 = avx && (saved & 0xe6) == 0xe6;
    const cpu_feature features[] = {
        {"AVX2", avx && (more_b >> 5 & 1)},
        {"FMA", avx && (basic >> 12 & 1)},
        {"F16C", avx && (basic >> 29 & 1)},
        {"BMI2", (more_b >> 3 & 1) && (more_b >> 8 & 1) && (basic >> 22 & 1) && lzcnt},
        {"AVX-VNNI", avx && (second_a >> 4 & 1)},
        {"AVX512F", avx512 && (more_b >> 16 & 1)},
        {"AVX512BW", avx512 && (more_b >> 30 & 1)},
        {"AVX512DQ", avx512 && (more_b >> 17 & 1)},
        {"AVX512VL", avx512 && (more_b >> 31 & 1) && (more_b >> 28 & 1)},
        {"AVX512-VNNI", avx512 && (more_c >> 11 & 1)},
        {"AVX512-BF16", avx512 && (second_a >> 5 & 1)},
    };
    memcpy(found, features, sizeof features);
    return sizeof features / sizeof *features;
}

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static inline int cpu_features(cpu_feature *found)
{
    unsigned long bits = getauxval(AT_HWCAP);
    const cpu_feature features[] = {{"FP16", bits >> 10 & 1}, {"DOTPROD", bits >> 20 & 1}};
    memcpy(found, features, sizeof features);
    return sizeof features / sizeof *features;
}

#else

static inline int cpu_features(cpu_feature *found)
{
    (void)found;
    return 0;
}

#endif

/* Whether `name` stands in the comma-separated $MIAOTUI_WITHOUT: features to do without, to try a library's
 * refusal. */
static inline int is_hidden(const char *name)
{
    const char *list = getenv("MIAOTUI_WITHOUT");
    size_t length = strlen(name);
    for (; list; list = (list = strchr(list, ',')) ? list + 1 : NULL)
        if (!strncmp(list, name, length) && (list[length] == ',' || !list[length]))
            return 1;
    return 0;
}

static inline int cpu_has(const char *name)
{
    cpu_feature found[CPU_FEATURES];
    int count = cpu_features(found);
    for (int i = 0; i < count; i++)
        if (!strcmp(found[i].name, name))
            return found[i].is_there && !is_hidden(name);
    return 0;
}

#endif

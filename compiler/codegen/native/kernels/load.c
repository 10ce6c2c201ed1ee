/* Opening a model and running its entries. Built for any CPU of the architecture, unlike model.c: what is
 * asked of the CPU, of the weight file and of a run's arguments is checked here, before a faster instruction
 * runs. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cpu.h"
#include "pool.h"
#include "runtime.h"

enum { MAX_THREADS = 1024 };

static const int64_t MAX_SIZE = INT32_MAX;
static const double MAX_BYTES = (double)((int64_t)1 << 46);

static __thread char last_error[1024];

const char *miaotui_last_error(void) { return last_error; }

int refuse(int code, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(last_error, sizeof last_error, format, values);
    va_end(values);
    return code;
}

/* ---- opening ---- */

static int check_cpu(void)
{
    const char *const *needs = miaotui_program.needs;
    while (*needs && cpu_has(*needs))
        needs++;
    if (!*needs)
        return MIAOTUI_OK;
    cpu_feature found[CPU_FEATURES];
    int count = cpu_features(found);
    char have[512] = "";
    for (int i = 0; i < count; i++)
        if (found[i].is_there && !is_hidden(found[i].name)) {
            size_t used = strlen(have);
            snprintf(have + used, sizeof have - used, "%s%s", used ? ", " : "", found[i].name);
        }
    return refuse(MIAOTUI_BAD_CPU, "this library was built for %s and needs %s, this CPU has %s; %s",
                  miaotui_program.isa, *needs, *have ? have : "nothing of the kind",
                  "compile the model for it");
}

static int check_header(const weights_header *header, uint64_t size, const char *path)
{
    static const unsigned char none[sizeof header->zero];
    if (memcmp(header->magic, WEIGHTS_MAGIC, sizeof header->magic) || header->reserved ||
        memcmp(header->zero, none, sizeof none))
        return refuse(MIAOTUI_BAD_FILE, "%s: is no weight file", path);
    if (header->version != WEIGHTS_VERSION)
        return refuse(MIAOTUI_BAD_FILE, "%s: has version %u, this library reads %u", path,
                      (unsigned)header->version, (unsigned)WEIGHTS_VERSION);
    if (header->size != size)
        return refuse(MIAOTUI_BAD_FILE, "%s: has %llu bytes, not the %llu that were written", path,
                      (unsigned long long)size, (unsigned long long)header->size);
    if (size != miaotui_program.weights_size ||
        memcmp(header->fingerprint, miaotui_program.fingerprint, FINGERPRINT_BYTES))
        return refuse(MIAOTUI_BAD_FILE, "%s: holds the weights of another model", path);
    return MIAOTUI_OK;
}

static int map_weights(miaotui_model *model, const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not wait for its writer */
    if (file < 0)
        return refuse(MIAOTUI_BAD_FILE, "%s: %s", path, strerror(errno));
    struct stat info;
    weights_header header;
    int error = MIAOTUI_OK;
    if (fstat(file, &info) || !S_ISREG(info.st_mode))
        error = refuse(MIAOTUI_BAD_FILE, "%s: is no file", path);
    else if (pread(file, &header, sizeof header, 0) != (ssize_t)sizeof header)
        error = refuse(MIAOTUI_BAD_FILE, "%s: is too short for a weight file", path);
    else
        error = check_header(&header, (uint64_t)info.st_size, path);
    if (!error) {
        model->weights_size = (size_t)info.st_size;
        model->weights = pages_map(&model->pages, file, model->weights_size);
        if (!model->weights)
            error = refuse(MIAOTUI_NO_MEMORY, "%s: can't be mapped: %s", path, strerror(errno));
    }
    close(file);
    return error;
}

static int usable_cpus(void)
{
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) > 0)
        return CPU_COUNT(&cpus);
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

miaotui_model *miaotui_open(const char *weights_path, int threads)
{
    last_error[0] = 0;
    if (!weights_path || threads < 0 || threads > MAX_THREADS) {
        refuse(MIAOTUI_BAD_ARGUMENT, "give the path of the weight file, and 0 to %d threads", MAX_THREADS);
        return NULL;
    }
    if (check_cpu())
        return NULL;
    miaotui_model *model = calloc(1, sizeof *model);
    if (!model) {
        refuse(MIAOTUI_NO_MEMORY, "there is no memory for a model");
        return NULL;
    }
    pthread_mutex_init(&model->lock, NULL);
    model->threads = threads ? threads : (int)min64(usable_cpus(), MAX_THREADS);
    if (map_weights(model, weights_path)) {
        miaotui_close(model);
        return NULL;
    }
    model->pool = pool_open(model->threads);
    if (!model->pool) {
        refuse(MIAOTUI_NO_MEMORY, "%d threads can't be started", model->threads);
        miaotui_close(model);
        return NULL;
    }
    return model;
}

void miaotui_close(miaotui_model *model)
{
    if (!model)
        return;
    if (model->pool)
        pool_close(model->pool);
    if (model->weights)
        pages_close(&model->pages, model->weights_size);
    free(model->arena.bytes);
    free(model->dropped.bytes);
    pthread_mutex_destroy(&model->lock);
    free(model);
}

/* ---- what there is ---- */

static const entry_info *entry_at(int entry)
{
    return entry >= 0 && entry < miaotui_program.entry_count ? &miaotui_program.entries[entry] : NULL;
}

int miaotui_entry(const char *name)
{
    for (int i = 0; name && i < miaotui_program.entry_count; i++)
        if (!strcmp(miaotui_program.entries[i].name, name))
            return i;
    return -1;
}

const char *miaotui_entry_name(int entry)
{
    const entry_info *found = entry_at(entry);
    return found ? found->name : NULL;
}

const char *miaotui_size_name(int entry, int size)
{
    const entry_info *found = entry_at(entry);
    return found && size >= 0 && size < found->size_count ? found->sizes[size].name : NULL;
}

const miaotui_tensor *miaotui_tensor_of(int entry, int tensor)
{
    const entry_info *found = entry_at(entry);
    return found && tensor >= 0 && tensor < found->tensor_count ? &found->tensors[tensor] : NULL;
}

/* ---- what a run must satisfy ---- */

static int check_sizes(const entry_info *entry, const int64_t *sizes)
{
    if (!sizes && entry->size_count)
        return refuse(MIAOTUI_BAD_ARGUMENT, "%s: give its %d sizes", entry->name, entry->size_count);
    for (int i = 0; i < entry->size_count; i++) {
        const size_info *info = &entry->sizes[i];
        int64_t most = info->maximum ? info->maximum : MAX_SIZE;
        if (sizes[i] < info->minimum || sizes[i] > most)
            return refuse(MIAOTUI_BAD_ARGUMENT, "%s: %s is %lld, outside %lld..%lld", entry->name, info->name,
                          (long long)sizes[i], (long long)info->minimum, (long long)most);
    }
    return MIAOTUI_OK;
}

static size_t element_bytes(int dtype)
{
    switch (dtype) {
    case MIAOTUI_INT64: return 8;
    case MIAOTUI_FLOAT32:
    case MIAOTUI_INT32: return 4;
    case MIAOTUI_FLOAT16: return 2;
    default: return 1;
    }
}

double tensor_elements(const entry_info *entry, int tensor, const int64_t *sizes)
{
    int64_t shape[MIAOTUI_MAX_RANK];
    double product = 1;
    entry->shape(tensor, sizes, shape);
    for (int i = 0; i < entry->tensors[tensor].rank; i++)
        product *= (double)shape[i];
    return product;
}

double tensor_bytes(const entry_info *entry, int tensor, const int64_t *sizes)
{
    return tensor_elements(entry, tensor, sizes) * (double)element_bytes(entry->tensors[tensor].dtype);
}

/* Inputs must be there and aligned; outputs may be missing: `missing` is the bytes of those, padded. */
static int check_tensors(const entry_info *entry, const int64_t *sizes, void *const *tensors, double *missing)
{
    *missing = 0;
    if (!tensors && entry->tensor_count)
        return refuse(MIAOTUI_BAD_ARGUMENT, "%s: give its %d tensors", entry->name, entry->tensor_count);
    for (int i = 0; i < entry->tensor_count; i++) {
        const miaotui_tensor *info = &entry->tensors[i];
        if ((uintptr_t)tensors[i] % element_bytes(info->dtype))
            return refuse(MIAOTUI_BAD_ARGUMENT, "%s: %s is not aligned to its elements", entry->name,
                          info->name);
        if (tensors[i])
            continue;
        double bytes = tensor_bytes(entry, i, sizes);
        if (bytes > 0 && !info->is_output)
            return refuse(MIAOTUI_BAD_ARGUMENT, "%s: %s is missing", entry->name, info->name);
        *missing += bytes + 64;
    }
    return MIAOTUI_OK;
}

static int64_t element_of(const void *data, int dtype, int64_t i)
{
    return dtype == MIAOTUI_INT32 ? ((const int32_t *)data)[i] : ((const int64_t *)data)[i];
}

static int check_values(const entry_info *entry, const int64_t *sizes, void *const *tensors)
{
    for (int k = 0; k < entry->check_count; k++) {
        const input_check *check = &entry->checks[k];
        const miaotui_tensor *info = &entry->tensors[check->tensor];
        int64_t count = (int64_t)tensor_elements(entry, check->tensor, sizes);
        int64_t added = check->add + (check->add_size >= 0 ? sizes[check->add_size] : 0);
        int64_t most = check->maximum >= 0 ? check->maximum : INT64_MAX;
        if (check->maximum_size >= 0)
            most = min64(most, sizes[check->maximum_size]);
        most -= added;
        for (int64_t i = 0; i < count; i++) {
            int64_t x = element_of(tensors[check->tensor], info->dtype, i);
            if (x >= check->minimum && x <= most)
                continue;
            if (check->add_size >= 0 && x >= check->minimum)
                return refuse(MIAOTUI_FULL, "%s: %s[%lld] is %lld: with %lld more there is room for %lld",
                              entry->name, info->name, (long long)i, (long long)x, (long long)added,
                              (long long)(most + added));
            return refuse(MIAOTUI_BAD_ARGUMENT, "%s: %s[%lld] is %lld, outside %lld..%lld", entry->name,
                          info->name, (long long)i, (long long)x, (long long)check->minimum, (long long)most);
        }
    }
    return MIAOTUI_OK;
}

int miaotui_shape(int entry, int tensor, const int64_t *sizes, int64_t *shape)
{
    const entry_info *found = entry_at(entry);
    if (!miaotui_tensor_of(entry, tensor) || !shape)
        return refuse(MIAOTUI_BAD_ARGUMENT, "there is no tensor %d of entry %d", tensor, entry);
    int error = check_sizes(found, sizes);
    if (!error)
        found->shape(tensor, sizes, shape);
    return error;
}

/* ---- running ---- */

/* Room for `bytes`; what the block held is lost. */
static int reserve(block *memory, double bytes, const char *what)
{
    if (bytes <= (double)memory->size)
        return MIAOTUI_OK;
    void *made = NULL;
    free(memory->bytes);
    *memory = (block){0};
    if (bytes > MAX_BYTES || posix_memalign(&made, 64, (size_t)bytes + 64))
        return refuse(MIAOTUI_NO_MEMORY, "%s: there is no memory for %.0f MB of intermediate values", what,
                      bytes / 1e6);
    ask_for_large(made, (size_t)bytes);
    *memory = (block){made, (size_t)bytes};
    return MIAOTUI_OK;
}

static int reserve_all(miaotui_model *model, const entry_info *entry, const int64_t *sizes, double missing)
{
    size_t worker_bytes = 0, shared_bytes = 0;
    int error = reserve(&model->arena, entry->arena(sizes), entry->name);
    if (!error)
        error = reserve(&model->dropped, missing, entry->name);
    if (error)
        return error;
    entry->scratch(sizes, &worker_bytes, &shared_bytes);
    if (!pool_scratch(model->pool, worker_bytes, shared_bytes))
        return refuse(MIAOTUI_NO_MEMORY,
                      "%s: there is no memory for %d workers of %zu bytes and %zu bytes of all", entry->name,
                      model->threads, worker_bytes, shared_bytes);
    return MIAOTUI_OK;
}

typedef struct job {
    const entry_info *entry;
    call *call;
} job;

static void run_worker(worker *w, void *context)
{
    const job *j = context;
    j->entry->run(w, j->call);
}

/* All is checked; outputs that are missing go into memory that nobody reads. */
static int run_checked(miaotui_model *model, const entry_info *entry, const int64_t *sizes,
                       void *const *tensors, double missing)
{
    void *places[entry->tensor_count + 1];
    int error = reserve_all(model, entry, sizes, missing);
    if (error)
        return error;
    unsigned char *next = model->dropped.bytes;
    for (int i = 0; i < entry->tensor_count; i++) {
        places[i] = tensors[i];
        if (!tensors[i]) {
            places[i] = next;
            next += ((size_t)tensor_bytes(entry, i, sizes) + 63) / 64 * 64;
        }
    }
    call c = {.sizes = sizes, .tensors = places, .weights = model->weights, .arena = model->arena.bytes};
    job j = {entry, &c};
    pages_place(&model->pages);
    pool_run(model->pool, run_worker, &j);
    return c.error ? refuse(MIAOTUI_BAD_ARGUMENT, "%s: %s", entry->name, c.error) : MIAOTUI_OK;
}

int miaotui_run(miaotui_model *model, int entry, const int64_t *sizes, void *const *tensors)
{
    const entry_info *found = entry_at(entry);
    if (!model || !found)
        return refuse(MIAOTUI_BAD_ARGUMENT, "there is no entry %d, or no model", entry);
    double missing;
    int error = check_sizes(found, sizes);
    if (!error)
        error = check_tensors(found, sizes, tensors, &missing);
    if (!error)
        error = check_values(found, sizes, tensors);
    if (error)
        return error;
    pthread_mutex_lock(&model->lock);
    error = run_checked(model, found, sizes, tensors, missing);
    pthread_mutex_unlock(&model->lock);
    return error;
}

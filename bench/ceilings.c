/* The machine's own ceilings: arithmetic peaks and read bandwidth of every cache level.
 *
 * Usage: ceilings THREADS SECONDS L1_BYTES L2_BYTES L3_BYTES MEMORY_BYTES
 * The four sizes are what each thread reads over and over (choose them to lie well inside a level).
 * Prints one JSON object: GFLOP/s (GOP/s for int8) and GB/s, summed over the threads.
 *
 * Every instruction set is compiled by function attributes and run only where the CPU and the
 * operating system have it, so the one binary is safe anywhere; other architectures than x86-64
 * get the portable loop. Each figure is the best of a few windows of SECONDS: a ceiling is what
 * the machine can do, not what it did on average.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#define HAVE_X86 1
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(HAVE_X86) && defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#define HAVE_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL _Pragma("unroll 16")
#endif

enum { WINDOWS = 5, MAX_THREADS = 1024 };

/* One kernel call does a fixed amount of work and returns it (operations or bytes). */
typedef double (*kernel_fn)(const void *data, size_t bytes);

static volatile float float_sink;
static volatile int int_sink;

/* Start values that the compiler cannot know: equal accumulators would be merged into one. */
static volatile float seed[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ------------------------------------------------------------------ portable kernels */

typedef float vec4 __attribute__((vector_size(16)));
typedef uint64_t vec2u __attribute__((vector_size(16)));
enum { FMA_LOOPS = 20000, READ_BYTES = 1 << 20 };

/* Runs `count` independent accumulators, so that latency never binds, and sums them into acc[0]. */
#define RUN_CHAINS(TYPE, count, zero, update, add)                                                 \
    TYPE acc[count];                                                                               \
    UNROLL for (int j = 0; j < count; ++j) acc[j] = (zero);                                        \
    for (int n = 0; n < FMA_LOOPS; ++n) {                                                          \
        UNROLL for (int j = 0; j < count; ++j) acc[j] = (update);                                  \
    }                                                                                              \
    UNROLL for (int j = 1; j < count; ++j) acc[0] = add(acc[0], acc[j]);

/* Reads `bytes` (a multiple of eight vectors) as often as it takes to pass READ_BYTES; the loads
 * are OR-ed into eight accumulators, which costs less than the loads everywhere. */
#define RUN_READS(TYPE, zero, load_or, add)                                                        \
    const TYPE *p = data;                                                                          \
    TYPE acc[8];                                                                                   \
    double done = 0.0;                                                                             \
    UNROLL for (int j = 0; j < 8; ++j) acc[j] = (zero);                                            \
    do {                                                                                           \
        for (size_t i = 0; i < bytes / sizeof(TYPE); i += 8) {                                     \
            UNROLL for (int j = 0; j < 8; ++j) acc[j] = load_or(acc[j], p + i + j);                \
        }                                                                                          \
        __asm__ volatile("" ::: "memory");                                                         \
        done += (double)bytes;                                                                     \
    } while (done < READ_BYTES);                                                                   \
    UNROLL for (int j = 1; j < 8; ++j) acc[0] = add(acc[0], acc[j]);

#define PLUS(a, b) ((a) + (b))

static double fma_portable(const void *data, size_t bytes)
{
    (void)data, (void)bytes;
    const vec4 a = {0.5f, 0.5f, 0.5f, 0.5f}, b = {1.0f, 1.0f, 1.0f, 1.0f};
    RUN_CHAINS(vec4, 12, b * seed[j], acc[j] * a + b, PLUS)
    float_sink = acc[0][0];
    return 2.0 * 4 * 12 * FMA_LOOPS;
}

#define LOAD_OR_PORTABLE(x, address) ((x) | *(address))

static double read_portable(const void *data, size_t bytes)
{
    RUN_READS(vec2u, (vec2u){0}, LOAD_OR_PORTABLE, PLUS)
    int_sink = (int)acc[0][0];
    return done;
}

/* ----------------------------------------------------------------------- x86 kernels */

#if defined(HAVE_X86)
#define TARGET(isa) __attribute__((target(isa)))

/* 12 chains where there are 16 registers, 16 where there are 32. */
TARGET("avx2,fma") static double fma_avx2(const void *data, size_t bytes)
{
    (void)data, (void)bytes;
    const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1.0f);
    RUN_CHAINS(__m256, 12, _mm256_set1_ps(seed[j]), _mm256_fmadd_ps(acc[j], a, b), _mm256_add_ps)
    float_sink = _mm256_cvtss_f32(acc[0]);
    return 2.0 * 8 * 12 * FMA_LOOPS;
}

TARGET("avx512f") static double fma_avx512(const void *data, size_t bytes)
{
    (void)data, (void)bytes;
    const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1.0f);
    RUN_CHAINS(__m512, 16, _mm512_set1_ps(seed[j]), _mm512_fmadd_ps(acc[j], a, b), _mm512_add_ps)
    float_sink = _mm512_cvtss_f32(acc[0]);
    return 2.0 * 16 * 16 * FMA_LOOPS;
}

TARGET("avx512f,avx512bf16") static double bf16_avx512(const void *data, size_t bytes)
{
    (void)data, (void)bytes;
    const __m512bh a = (__m512bh)_mm512_setzero_si512();
    RUN_CHAINS(__m512, 16, _mm512_set1_ps(seed[j]), _mm512_dpbf16_ps(acc[j], a, a), _mm512_add_ps)
    float_sink = _mm512_cvtss_f32(acc[0]);
    return 2.0 * 32 * 16 * FMA_LOOPS;
}

TARGET("avx512f,avx512vnni") static double int8_avx512(const void *data, size_t bytes)
{
    (void)data, (void)bytes;
    const __m512i a = _mm512_set1_epi32(0x01010101);
    RUN_CHAINS(__m512i, 16, _mm512_set1_epi32((int)seed[j]), _mm512_dpbusd_epi32(acc[j], a, a),
               _mm512_add_epi32)
    int_sink = _mm_cvtsi128_si32(_mm512_castsi512_si128(acc[0]));
    return 2.0 * 64 * 16 * FMA_LOOPS;
}

#define LOAD_OR_AVX2(x, address) _mm256_or_si256(x, _mm256_load_si256(address))
#define LOAD_OR_AVX512(x, address) _mm512_or_si512(x, _mm512_load_si512(address))

TARGET("avx2") static double read_avx2(const void *data, size_t bytes)
{
    RUN_READS(__m256i, _mm256_setzero_si256(), LOAD_OR_AVX2, _mm256_or_si256)
    int_sink = _mm256_extract_epi32(acc[0], 0);
    return done;
}

TARGET("avx512f") static double read_avx512(const void *data, size_t bytes)
{
    RUN_READS(__m512i, _mm512_setzero_si512(), LOAD_OR_AVX512, _mm512_or_si512)
    int_sink = _mm_cvtsi128_si32(_mm512_castsi512_si128(acc[0]));
    return done;
}
#endif

#if defined(HAVE_AMX)
/* Four accumulator tiles from two A and two B tiles: the largest reuse that eight tiles allow. */
#define AMX_LOOP(OP)                                                                               \
    for (int n = 0; n < FMA_LOOPS; ++n) {                                                          \
        OP(0, 4, 6);                                                                               \
        OP(1, 4, 7);                                                                               \
        OP(2, 5, 6);                                                                               \
        OP(3, 5, 7);                                                                               \
    }

TARGET("amx-tile") static void amx_configure(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } __attribute__((packed, aligned(64))) config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int j = 0; j < 8; ++j) {
        config.row_bytes[j] = 64;
        config.rows[j] = 16;
    }
    __asm__ volatile("" ::"r"(&config) : "memory"); /* GCC 12 thinks that only 8 bytes are read */
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
}

TARGET("amx-tile,amx-bf16") static double bf16_amx(const void *data, size_t bytes)
{
    (void)data, (void)bytes;
    amx_configure();
    AMX_LOOP(_tile_dpbf16ps)
    _tile_release();
    return 2.0 * 16 * 16 * 32 * 4 * FMA_LOOPS;
}

TARGET("amx-tile,amx-int8") static double int8_amx(const void *data, size_t bytes)
{
    (void)data, (void)bytes;
    amx_configure();
    AMX_LOOP(_tile_dpbssd)
    _tile_release();
    return 2.0 * 16 * 16 * 64 * 4 * FMA_LOOPS;
}

/* True if the CPU has AMX tiles with bf16 and int8, and the kernel lets this process use them. */
static int amx_usable(void)
{
    unsigned a, b, c, d;
    const unsigned wanted = (1u << 22) | (1u << 24) | (1u << 25);
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & wanted) != wanted)
        return 0;
    enum { ARCH_REQ_XCOMP_PERM_ = 0x1023, XFEATURE_XTILEDATA_ = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM_, XFEATURE_XTILEDATA_) == 0;
}
#endif

/* -------------------------------------------------------------------------- measuring */

typedef struct {
    kernel_fn kernel;
    size_t bytes;
    double window;
    pthread_barrier_t *barrier;
    double rate; /* best work per second over the windows */
} worker;

static double one_window(const worker *w, const void *data)
{
    double work = 0.0, start = seconds_now(), end;
    do {
        work += w->kernel(data, w->bytes);
        __asm__ volatile("" ::: "memory");
        end = seconds_now();
    } while (end - start < w->window);
    return work / (end - start);
}

static void *run_worker(void *argument)
{
    worker *w = argument;
    const size_t size = (w->bytes + 4095) / 4096 * 4096;
    void *data = size ? aligned_alloc(4096, size) : NULL;
    if (data)
        memset(data, 1, size);
    if (size == 0 || data)
        (void)one_window(w, data); /* warm up: clocks, caches, page tables */
    for (int n = 0; n < WINDOWS; ++n) {
        pthread_barrier_wait(w->barrier);
        const double rate = (size == 0 || data) ? one_window(w, data) : 0.0;
        if (rate > w->rate)
            w->rate = rate;
    }
    free(data);
    return NULL;
}

/* Work per second of `kernel` summed over `threads` threads, each on `bytes` of its own. */
static double measure(kernel_fn kernel, size_t bytes, int threads, double window)
{
    static pthread_t handles[MAX_THREADS];
    static worker workers[MAX_THREADS];
    pthread_barrier_t barrier;
    double total = 0.0;
    pthread_barrier_init(&barrier, NULL, (unsigned)threads);
    for (int t = 0; t < threads; ++t) {
        workers[t] = (worker){kernel, bytes, window, &barrier, 0.0};
        if (pthread_create(&handles[t], NULL, run_worker, &workers[t]) != 0) {
            fputs("ceilings: a thread could not be started\n", stderr);
            exit(1);
        }
    }
    for (int t = 0; t < threads; ++t) {
        pthread_join(handles[t], NULL);
        total += workers[t].rate;
    }
    pthread_barrier_destroy(&barrier);
    return total * 1e-9;
}

static int first_entry = 1;

static void print_rate(const char *name, kernel_fn kernel, size_t bytes, int threads, double window)
{
    printf("%s\"%s\": %.2f", first_entry ? "" : ", ", name,
           measure(kernel, bytes, threads, window));
    first_entry = 0;
    fflush(stdout);
}

static void print_arithmetic(int threads, double window)
{
    print_rate("fma_portable", fma_portable, 0, threads, window);
#if defined(HAVE_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        print_rate("fma_avx2", fma_avx2, 0, threads, window);
    if (__builtin_cpu_supports("avx512f"))
        print_rate("fma_avx512", fma_avx512, 0, threads, window);
    if (__builtin_cpu_supports("avx512bf16"))
        print_rate("bf16_avx512", bf16_avx512, 0, threads, window);
    if (__builtin_cpu_supports("avx512vnni"))
        print_rate("int8_avx512", int8_avx512, 0, threads, window);
#endif
#if defined(HAVE_AMX)
    if (amx_usable()) {
        print_rate("bf16_amx", bf16_amx, 0, threads, window);
        print_rate("int8_amx", int8_amx, 0, threads, window);
    }
#endif
}

static kernel_fn widest_read(void)
{
#if defined(HAVE_X86)
    if (__builtin_cpu_supports("avx512f"))
        return read_avx512;
    if (__builtin_cpu_supports("avx2"))
        return read_avx2;
#endif
    return read_portable;
}

int main(int argc, char **argv)
{
    static const char *const levels[] = {"L1", "L2", "L3", "memory"};
    const int threads = argc == 7 ? atoi(argv[1]) : 0;
    const double window = argc == 7 ? atof(argv[2]) : 0.0;
    if (threads < 1 || threads > MAX_THREADS || !(window > 0.0)) {
        fputs("usage: ceilings THREADS SECONDS L1 L2 L3 MEMORY (bytes read by each thread)\n",
              stderr);
        return 2;
    }
    printf("{\"threads\": %d, \"gflops\": {", threads);
    print_arithmetic(threads, window);
    printf("}, \"read_gb_s\": {");
    first_entry = 1;
    for (int level = 0; level < 4; ++level) {
        const size_t bytes = (size_t)strtoull(argv[3 + level], NULL, 10) / 1024 * 1024;
        print_rate(levels[level], widest_read(), bytes ? bytes : 1024, threads, window);
    }
    printf("}}\n");
    return 0;
}

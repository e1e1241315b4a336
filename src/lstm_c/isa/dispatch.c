/* The only file that chooses an ISA. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "isa/isa.h"

static int always(void)
{
    return 1;
}

/* Best first. */
static const struct {
    const fl_isa *table;
    int (*available)(void);
} candidates[] = {{&fl_isa_avx512, fl_cpu_has_avx512},
                  {&fl_isa_avx2, fl_cpu_has_avx2},
                  {&fl_isa_portable, always}};

enum { N_CANDIDATES = sizeof candidates / sizeof candidates[0] };

static pthread_once_t chosen_once = PTHREAD_ONCE_INIT;
static const fl_isa *chosen;
static fl_status chosen_status;

static void choose(void)
{
    const char *wanted = getenv("FASTLSTM_ISA");
    int named = wanted && *wanted;
    chosen_status = named ? FL_ERR_UNKNOWN_ISA : FL_OK;
    for (int i = 0; i < N_CANDIDATES; i++) {
        if (named && strcmp(wanted, candidates[i].table->name) != 0)
            continue;
        if (candidates[i].table->compiled && candidates[i].available()) {
            chosen = candidates[i].table;
            chosen_status = FL_OK;
            return;
        }
        if (named)
            chosen_status = FL_ERR_ISA_UNAVAILABLE;
    }
}

const fl_isa *fl_isa_current(fl_status *status)
{
    pthread_once(&chosen_once, choose);
    *status = chosen_status;
    return chosen;
}

fl_status fl_isa_name(const char **name)
{
    if (!name)
        return FL_ERR_ARGUMENT;
    fl_status status;
    const fl_isa *isa = fl_isa_current(&status);
    *name = isa ? isa->name : NULL;
    return status;
}

fl_status fl_isa_available(int32_t index, const char **name, int32_t *available)
{
    if (index < 0 || index >= N_CANDIDATES || !name || !available)
        return FL_ERR_ARGUMENT;
    *name = candidates[index].table->name;
    *available = candidates[index].table->compiled && candidates[index].available();
    return FL_OK;
}

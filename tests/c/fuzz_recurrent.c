/* Random configurations of the recurrent layer against the plain reference.
 *
 *     fuzz_recurrent [seed [count]]
 *
 * Configuration i has seed + i, so that a failure is repeated with the seed it prints and count 1.
 * The instruction set is that of FASTLSTM_ISA. */
#include <stdio.h>
#include <stdlib.h>

#include "allocator.h"
#include "layer_case.h"

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 10) : 60;
    printf("%s, %llu configurations from seed %llu\n", isa_or_skip(), (unsigned long long)count,
           (unsigned long long)seed);
    long live = allocator_live();
    for (uint64_t i = 0; i < count; i++) {
        layer_case one = layer_case_random(seed + i);
        layer_case_run(&one);
    }
    CHECK_EQUAL(allocator_live(), live);
    return check_report();
}

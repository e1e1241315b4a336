/* Counter-based random numbers (Philox 4x32-10; Salmon et al., SC 2011): the value is a pure
 * function of key and counter, so masks do not depend on the number of threads or on the order of
 * evaluation. */
#ifndef FL_BASE_RNG_H
#define FL_BASE_RNG_H

#include <stdint.h>

#include "base/compiler.h"

typedef struct fl_philox {
    uint32_t word[4];
} fl_philox;

FL_INLINE fl_philox fl_philox4x32(fl_philox counter, uint64_t key)
{
    uint32_t key0 = (uint32_t)key, key1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * counter.word[0];
        uint64_t product1 = (uint64_t)0xCD9E8D57u * counter.word[2];
        fl_philox next = {{(uint32_t)(product1 >> 32) ^ counter.word[1] ^ key0, (uint32_t)product1,
                           (uint32_t)(product0 >> 32) ^ counter.word[3] ^ key1,
                           (uint32_t)product0}};
        counter = next;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

/* Uniform in [0, 1) with 24 bits: element `index` of stream `stream` under `key`. */
FL_INLINE float fl_uniform(uint64_t key, uint64_t stream, uint64_t index)
{
    fl_philox counter = {{(uint32_t)(index >> 2), (uint32_t)(index >> 34), (uint32_t)stream,
                          (uint32_t)(stream >> 32)}};
    fl_philox value = fl_philox4x32(counter, key);
    return (float)(value.word[index & 3] >> 8) * 0x1p-24f;
}

#endif

#ifndef COMMON_H
#define COMMON_H

#include <pervma.h>

#include <stdio.h>
#include <stdlib.h>

#define REQUIRE(holds)                                                                             \
    do {                                                                                           \
        if (!(holds)) {                                                                            \
            fprintf(stderr, "%s:%d: does not hold: %s (%s)\n", __FILE__, __LINE__, #holds,         \
                    pervma_last_error());                                                          \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define GIVES(code, call)                                                                          \
    do {                                                                                           \
        pervma_status gave = (call);                                                               \
        if (gave != (code)) {                                                                      \
            fprintf(stderr, "%s:%d: %s gave %d, %s (%s)\n", __FILE__, __LINE__, #call, (int)gave,  \
                    pervma_strerror(gave), pervma_last_error());                                   \
            exit(gave == PERVMA_ESYSTEM ? 77 : 1);                                                 \
        }                                                                                          \
    } while (0)

#define OK(call) GIVES(PERVMA_OK, call)

#endif

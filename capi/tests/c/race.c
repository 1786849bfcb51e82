/* A race, which ThreadSanitizer must report: an object is used after its guard has ended. */
#include "common.h"

#include <pthread.h>
#include <stdatomic.h>

enum { PAGE = 4096 };

static pervma_space *space;
static atomic_int begun, over;

static void destroy(void *context, uint64_t payload)
{
    (void)context;
    *(int *)(uintptr_t)payload = 0;
}

static void *reader(void *argument)
{
    int sum = 0;
    (void)argument;
    while (!atomic_load_explicit(&over, memory_order_relaxed)) {
        pervma_guard guard;
        if (pervma_read_begin(space, PAGE, &guard) == PERVMA_OK) {
            pervma_read_end(&guard);
            sum += *(int *)(uintptr_t)guard.payload;
            atomic_store_explicit(&begun, 1, memory_order_relaxed);
        }
    }
    return (void *)(intptr_t)sum;
}

int main(void)
{
    static int object = 1;
    pthread_t thread;
    pervma_space_options options = { 0 };
    options.destroy = destroy;
    OK(pervma_space_create(&options, &space));
    OK(pervma_insert(space, PAGE, 2 * PAGE, (uintptr_t)&object));
    REQUIRE(pthread_create(&thread, NULL, reader, NULL) == 0);
    while (!atomic_load_explicit(&begun, memory_order_relaxed)) {
    }
    for (int round = 0; round < 1000; round++) {
        OK(pervma_remove(space, PAGE, 2 * PAGE, NULL, NULL));
        OK(pervma_insert(space, PAGE, 2 * PAGE, (uintptr_t)&object));
    }
    atomic_store_explicit(&over, 1, memory_order_relaxed);
    REQUIRE(pthread_join(thread, NULL) == 0);
    OK(pervma_space_destroy(space));
    puts("ok");
    return 0;
}

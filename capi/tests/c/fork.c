/* Spaces across fork, with handlers of pthread_atfork, beside threads that change them. */
#define _GNU_SOURCE
#include "common.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

static pervma_space *space, *held;
static atomic_int over;

static int same(void *context, uintptr_t start, uintptr_t end, uint64_t *payload)
{
    (void)context;
    (void)start;
    (void)end;
    (void)payload;
    return 1;
}

static void *changer(void *argument)
{
    (void)argument;
    while (!atomic_load(&over)) {
        pervma_reservation *reservation;
        pervma_space *other;
        OK(pervma_update(space, PAGE, 3 * PAGE, same, NULL, NULL));
        OK(pervma_reserve(space, 8 * PAGE, 9 * PAGE, &reservation));
        OK(pervma_abort(reservation));
        OK(pervma_space_create(NULL, &other));
        OK(pervma_insert(other, PAGE, 2 * PAGE, 1));
        OK(pervma_space_destroy(other));
    }
    return NULL;
}

static void *reader(void *argument)
{
    (void)argument;
    while (!atomic_load(&over)) {
        pervma_guard guard;
        OK(pervma_read_begin_wait(space, PAGE, &guard));
        OK(pervma_read_end(&guard));
    }
    return NULL;
}

int main(void)
{
    pthread_t threads[2];
    pervma_guard guard;
    REQUIRE(pthread_atfork(pervma_fork_prepare, pervma_fork_parent, pervma_fork_child) == 0);
    OK(pervma_space_create(NULL, &space));
    OK(pervma_insert(space, PAGE, 3 * PAGE, 1));
    OK(pervma_space_create(NULL, &held));
    OK(pervma_insert(held, PAGE, 3 * PAGE, 1));
    OK(pervma_read_begin(held, PAGE, &guard)); /* so this space cannot be prepared */
    REQUIRE(pthread_create(&threads[0], NULL, changer, NULL) == 0);
    REQUIRE(pthread_create(&threads[1], NULL, reader, NULL) == 0);
    for (int round = 0; round < 100; round++) {
        pid_t child = fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            pervma_vma vma;
            pervma_space *made;
            alarm(100);
            OK(pervma_lookup(space, PAGE, &vma));
            REQUIRE(vma.start == PAGE && vma.payload == 1);
            OK(pervma_set(space, PAGE, 2 * PAGE, 2, NULL, NULL));
            OK(pervma_remove(space, 2 * PAGE, 3 * PAGE, NULL, NULL));
            GIVES(PERVMA_EFORKED, pervma_lookup(held, PAGE, &vma));
            GIVES(PERVMA_EFORKED, pervma_insert(held, 4 * PAGE, 5 * PAGE, 1));
            GIVES(PERVMA_EFORKED, pervma_read_end(&guard));
            OK(pervma_space_create(NULL, &made));
            OK(pervma_insert(made, PAGE, 3 * PAGE, 1));
            OK(pervma_space_destroy(made));
            OK(pervma_space_destroy(held));
            /* The other thread's reservation, if it had one, is nobody's now. */
            pervma_status destroyed = pervma_space_destroy(space);
            REQUIRE(destroyed == PERVMA_OK || destroyed == PERVMA_EIN_USE);
            _exit(0);
        }
        int status;
        REQUIRE(waitpid(child, &status, 0) == child);
        REQUIRE(status == 0);
    }
    atomic_store(&over, 1);
    for (int i = 0; i < 2; i++)
        REQUIRE(pthread_join(threads[i], NULL) == 0);
    OK(pervma_read_end(&guard));
    OK(pervma_space_destroy(held));
    OK(pervma_space_destroy(space));
    puts("ok");
    return 0;
}

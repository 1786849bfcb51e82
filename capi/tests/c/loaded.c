/* The library loaded by dlopen: the first thing that a thread does with it is a lookup in a signal
 * handler, where nothing must be allocated. */
#define _GNU_SOURCE
#include <pervma.h>

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(holds)                                                                               \
    do {                                                                                           \
        if (!(holds)) {                                                                            \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #holds);             \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* glibc's own, by another name; the dynamic linker calls the program's. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_memalign(size_t align, size_t size);

static volatile sig_atomic_t handling;
static volatile int allocations;

void *malloc(size_t size)
{
    allocations += handling;
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    allocations += handling;
    return __libc_calloc(count, size);
}

void *memalign(size_t align, size_t size)
{
    allocations += handling;
    return __libc_memalign(align, size);
}

static pervma_space *space;
static __typeof__(&pervma_lookup) lookup;
static __typeof__(&pervma_read_begin) read_begin;
static __typeof__(&pervma_read_end) read_end;

static void handle(int signal)
{
    (void)signal;
    pervma_vma vma;
    pervma_guard guard;
    handling = 1;
    pervma_status statuses[] = { lookup(space, 0x1000, &vma), lookup(space, 0x3000, &vma),
                                 read_begin(space, 0x1000, &guard), read_end(&guard),
                                 read_end(&guard), lookup(NULL, 0x1000, &vma) };
    handling = 0;
    CHECK(statuses[0] == PERVMA_OK && statuses[1] == PERVMA_ENOT_MAPPED);
    CHECK(statuses[2] == PERVMA_OK && statuses[3] == PERVMA_OK);
    CHECK(statuses[4] == PERVMA_EHANDLE && statuses[5] == PERVMA_EINVALID);
}

static void *raise_signal(void *unused)
{
    (void)unused;
    raise(SIGUSR1);
    return NULL;
}

/* ISO C knows no functions as objects. */
#define FIND(function, name) (*(void **)&(function) = dlsym(library, name))

int main(int count, char **arguments)
{
    CHECK(count == 2);
    void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    CHECK(library != NULL);
    __typeof__(&pervma_space_create) create;
    __typeof__(&pervma_space_destroy) destroy;
    __typeof__(&pervma_insert) insert;
    FIND(create, "pervma_space_create");
    FIND(destroy, "pervma_space_destroy");
    FIND(insert, "pervma_insert");
    FIND(lookup, "pervma_lookup");
    FIND(read_begin, "pervma_read_begin");
    FIND(read_end, "pervma_read_end");

    CHECK(create(NULL, &space) == PERVMA_OK);
    CHECK(insert(space, 0x1000, 0x2000, 1) == PERVMA_OK);
    signal(SIGUSR1, handle);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, raise_signal, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(allocations == 0);
    CHECK(destroy(space) == PERVMA_OK);
    puts("ok");
    return 0;
}

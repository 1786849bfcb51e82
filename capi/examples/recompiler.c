/*
 * The memory map of a dynamic recompiler: which pages of a guest are mapped, how, and which of them
 * have translated code. The guest's threads map and unmap; writes to pages with translated code are
 * caught by SIGSEGV, whose handler looks the address up and lets the write through.
 *
 * A payload is a number: protection bits, as box64 keeps them.
 */
#define _GNU_SOURCE
#include <pervma.h>

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 64, READABLE = 1, WRITABLE = 2, TRANSLATED = 4 };

static pervma_space *map;
static unsigned char *guest;

/* What the handler has met. */
static atomic_long translated_writes, busy, holes, own_edits;
static _Atomic uintptr_t expected_hole;
static atomic_int expects_own_edit;

static void check(pervma_status status, const char *what)
{
    if (status != PERVMA_OK) {
        fprintf(stderr, "%s: %s (%s)\n", what, pervma_strerror(status), pervma_last_error());
        exit(1);
    }
}

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now); /* async-signal-safe */
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void give_up(const char *line)
{
    ssize_t written = write(2, line, strlen(line));
    (void)written;
    _exit(1);
}

/* Since when this thread meets PERVMA_EBUSY again and again; 0 when it does not. */
static _Thread_local long busy_since;

static void on_segv(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)context;
    uintptr_t addr = (uintptr_t)info->si_addr;
    unsigned char *page = (unsigned char *)(addr & ~(uintptr_t)(PAGE - 1));
    pervma_guard guard;

    pervma_handler_enter();
    pervma_status status = pervma_read_begin(map, addr, &guard);
    switch (status) {
    case PERVMA_OK:
        /* The VMA stays as it is while its translations go, and the page's protection changes. */
        if (!(guard.payload & WRITABLE))
            give_up("a write to what the guest has not made writable\n");
        mprotect(page, PAGE, PROT_READ | PROT_WRITE);
        atomic_fetch_add(&translated_writes, 1);
        pervma_read_end(&guard);
        busy_since = 0;
        break;
    case PERVMA_EBUSY:
        /* Another thread is changing the place. Back to the access: it faults again until that
         * thread is done. Bounded by time, since it may hold the range for long. */
        atomic_fetch_add(&busy, 1);
        if (busy_since == 0)
            busy_since = now_ms();
        else if (now_ms() - busy_since > 60000)
            give_up("another thread has held the place for a minute\n");
        break;
    case PERVMA_EBUSY_OWN:
        /* This thread itself is changing the place: to return is no help. A recompiler defers the
         * guest's signal here; this example has only one such access, and lets it through. */
        if (!atomic_load(&expects_own_edit))
            give_up("a fault in the middle of an edit of the same place\n");
        atomic_fetch_add(&own_edits, 1);
        mprotect(page, PAGE, PROT_READ | PROT_WRITE);
        break;
    case PERVMA_ENOT_MAPPED:
        /* The guest's own fault: an emulator raises its signal. */
        if (addr != atomic_load(&expected_hole))
            give_up("a hole where something is mapped\n");
        atomic_fetch_add(&holes, 1);
        mprotect(page, PAGE, PROT_READ | PROT_WRITE);
        break;
    default:
        give_up(pervma_strerror(status));
    }
    pervma_handler_leave();
}

static uintptr_t page(int number)
{
    return (uintptr_t)guest + (uintptr_t)number * PAGE;
}

/* Another thread of the guest: mmap, mprotect and munmap in the upper half. */
static void *mapper(void *argument)
{
    atomic_int *over = argument;
    for (int at = 32; !atomic_load(over); at = at == 60 ? 32 : at + 2) {
        check(pervma_set(map, page(at), page(at + 2), READABLE | WRITABLE, NULL, NULL), "map");
        check(pervma_set(map, page(at), page(at + 1), READABLE, NULL, NULL), "protect");
        check(pervma_remove(map, page(at), page(at + 2), NULL, NULL), "unmap");
    }
    return NULL;
}

static uint64_t slow_payload;
static long busy_before;

static int slowly(void *context, uintptr_t start, uintptr_t end, uint64_t *payload)
{
    (void)start;
    (void)end;
    atomic_store((atomic_int *)context, 1);
    struct timespec second = { 1, 0 };
    do
        nanosleep(&second, NULL);
    while (atomic_load(&busy) == busy_before); /* the other thread is late */
    slow_payload = *payload;
    return 1;
}

/* A writer that holds a range for a second. */
static void *holder(void *argument)
{
    check(pervma_update(map, page(0), page(8), slowly, NULL, argument), "update");
    return NULL;
}

/* Translates a page: writes to it are caught from now on. */
static void translate(int number)
{
    mprotect((void *)page(number), PAGE, PROT_READ);
}

int main(void)
{
    guest = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct sigaction action = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO };
    if (guest == MAP_FAILED || sigaction(SIGSEGV, &action, NULL) != 0)
        return 1;
    check(pervma_space_create(NULL, &map), "create"); /* pages of 4096, payloads are numbers */
    check(pervma_set(map, page(0), page(16), READABLE | WRITABLE, NULL, NULL), "map");
    check(pervma_set(map, page(4), page(8), READABLE | WRITABLE | TRANSLATED, NULL, NULL), "mark");
    if (pervma_count(map) != 3)
        return 1;
    check(pervma_set(map, page(4), page(8), READABLE | WRITABLE, NULL, NULL), "unmark");
    if (pervma_count(map) != 1) /* equal neighbours have merged */
        return 1;

    /* Faults beside a thread that maps and unmaps elsewhere. */
    atomic_int over = 0;
    pthread_t thread;
    if (pthread_create(&thread, NULL, mapper, &over) != 0)
        return 1;
    for (int round = 0; round < 300; round++) {
        translate(round % 16);
        guest[(round % 16) * PAGE] = 1;
    }
    atomic_store(&over, 1);
    pthread_join(thread, NULL);
    if (atomic_load(&translated_writes) != 300)
        return 1;

    /* A fault in a range that another thread holds for a second: it waits, by faulting again. */
    atomic_int begun = 0;
    busy_before = atomic_load(&busy);
    translate(1);
    if (pthread_create(&thread, NULL, holder, &begun) != 0)
        return 1;
    while (!atomic_load(&begun))
        sched_yield();
    guest[PAGE] = 2;
    if (atomic_load(&busy) == busy_before || guest[PAGE] != 2)
        return 1;
    pthread_join(thread, NULL);
    if (slow_payload != (READABLE | WRITABLE) || atomic_load(&translated_writes) != 301)
        return 1;

    /* The guest's own fault: where nothing is mapped. Its end is where the next VMA starts. */
    check(pervma_set(map, page(24), page(25), READABLE, NULL, NULL), "map");
    pervma_vma hole;
    if (pervma_lookup(map, page(20), &hole) != PERVMA_ENOT_MAPPED || hole.end != page(24))
        return 1;
    translate(20);
    atomic_store(&expected_hole, page(20));
    guest[20 * PAGE] = 3;
    if (atomic_load(&holes) != 1)
        return 1;

    /* A fault in this thread's own edit: found, where the edit has changed nothing. */
    translate(2);
    translate(40);
    check(pervma_edit_begin(map), "edit");
    check(pervma_insert(map, page(40), page(41), READABLE | WRITABLE), "insert");
    guest[2 * PAGE] = 4;
    if (atomic_load(&translated_writes) != 302)
        return 1;
    atomic_store(&expects_own_edit, 1);
    guest[40 * PAGE] = 5; /* busy, by this thread: it is being mapped */
    atomic_store(&expects_own_edit, 0);
    check(pervma_edit_end(map), "end");
    if (atomic_load(&own_edits) != 1)
        return 1;

    check(pervma_space_destroy(map), "destroy");
    puts("ok");
    return 0;
}

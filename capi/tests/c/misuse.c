/* What C programmers get wrong most, by name: an error code, or one line and an abort. */
#define _GNU_SOURCE
#include "common.h"

#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

enum { PAGE = 4096 };

static pervma_space *space;

static int change(void *context, uintptr_t start, uintptr_t end, uint64_t *payload)
{
    (void)context;
    (void)start;
    (void)end;
    (void)payload;
    return 1;
}

static int show(void *context, const pervma_vma *vma)
{
    (void)context;
    (void)vma;
    return 1;
}

static void nulls(void)
{
    pervma_vma vma;
    pervma_guard guard;
    pervma_vma_id id = { { 0, 0, 0, 0 } };
    pervma_space *made;
    pervma_reader *reader;
    pervma_exclusion *exclusion;
    pervma_reservation *reservation;
    pervma_region *region;
    pervma_pin *pin;
    pervma_region_counts counts;
    pervma_gap gap = { PAGE, 0, 0, 0, 0 };
    uintptr_t found;
    char byte = 0;

    GIVES(PERVMA_EINVALID, pervma_slab_create(NULL));
    GIVES(PERVMA_EINVALID, pervma_slab_destroy(NULL));
    GIVES(PERVMA_EINVALID, pervma_space_create(NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_space_destroy(NULL));
    GIVES(PERVMA_EINVALID, pervma_edit_begin(NULL));
    GIVES(PERVMA_EINVALID, pervma_edit_begin_timed(NULL, 0));
    GIVES(PERVMA_EINVALID, pervma_edit_begin_range(NULL, PAGE, 2 * PAGE, 0));
    GIVES(PERVMA_EINVALID, pervma_edit_end(NULL));
    GIVES(PERVMA_EINVALID, pervma_insert(NULL, 0, PAGE, 1));
    GIVES(PERVMA_EINVALID, pervma_insert_merging(NULL, 0, PAGE, 1));
    GIVES(PERVMA_EINVALID, pervma_set(NULL, 0, PAGE, 1, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_replace(NULL, 0, PAGE, 1, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_remove(NULL, 0, PAGE, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_change(NULL, 0, PAGE, NULL, change, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_change(space, 0, PAGE, NULL, NULL, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_update(NULL, 0, PAGE, change, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_update(space, 0, PAGE, NULL, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_relocate(NULL, 0, PAGE, 2 * PAGE, NULL, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_find_gap(NULL, &gap, &found));
    GIVES(PERVMA_EINVALID, pervma_find_gap(space, NULL, &found));
    GIVES(PERVMA_EINVALID, pervma_find_gap(space, &gap, NULL));
    GIVES(PERVMA_EINVALID, pervma_next(NULL, 0, &vma));
    GIVES(PERVMA_EINVALID, pervma_next(space, 0, NULL));
    GIVES(PERVMA_EINVALID, pervma_prev(NULL, 0, &vma));
    GIVES(PERVMA_EINVALID, pervma_prev(space, 0, NULL));
    GIVES(PERVMA_EINVALID, pervma_for_each(NULL, 0, PAGE, 0, show, NULL));
    GIVES(PERVMA_EINVALID, pervma_for_each(space, 0, PAGE, 0, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_lookup(NULL, 0, &vma));
    GIVES(PERVMA_EINVALID, pervma_lookup(space, 0, NULL));
    GIVES(PERVMA_EINVALID, pervma_lookup_wait(NULL, 0, &vma));
    GIVES(PERVMA_EINVALID, pervma_lookup_wait(space, 0, NULL));
    GIVES(PERVMA_EINVALID, pervma_read_begin(NULL, 0, &guard));
    GIVES(PERVMA_EINVALID, pervma_read_begin(space, 0, NULL));
    GIVES(PERVMA_EINVALID, pervma_read_begin_wait(NULL, 0, &guard));
    GIVES(PERVMA_EINVALID, pervma_read_begin_wait(space, 0, NULL));
    GIVES(PERVMA_EINVALID, pervma_read_begin_shared(NULL, 0, &guard));
    GIVES(PERVMA_EINVALID, pervma_read_begin_shared(space, 0, NULL));
    GIVES(PERVMA_EINVALID, pervma_read_end(NULL));
    GIVES(PERVMA_EINVALID, pervma_guard_id(NULL, &id));
    GIVES(PERVMA_EINVALID, pervma_guard_id(&guard, NULL));
    GIVES(PERVMA_EINVALID, pervma_read_begin_id(NULL, &id, &guard));
    GIVES(PERVMA_EINVALID, pervma_read_begin_id(space, NULL, &guard));
    GIVES(PERVMA_EINVALID, pervma_read_begin_id(space, &id, NULL));
    GIVES(PERVMA_EINVALID, pervma_umap_settings_get(NULL));
    GIVES(PERVMA_EINVALID, pervma_reader_register(NULL, &reader));
    GIVES(PERVMA_EINVALID, pervma_reader_register(space, NULL));
    GIVES(PERVMA_EINVALID, pervma_reader_unregister(NULL));
    GIVES(PERVMA_EINVALID, pervma_reader_read_begin(NULL, 0, &guard));
    GIVES(PERVMA_EINVALID, pervma_reader_lookup(NULL, 0, &vma));
    GIVES(PERVMA_EINVALID, pervma_exclude(NULL, 0, PAGE, &exclusion));
    GIVES(PERVMA_EINVALID, pervma_exclude(space, 0, PAGE, NULL));
    GIVES(PERVMA_EINVALID, pervma_exclusion_wait(NULL, 0));
    GIVES(PERVMA_EINVALID, pervma_exclusion_remove(NULL, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_exclusion_update(NULL, change, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_exclusion_relocate(NULL, 0, NULL, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_exclusion_abandon(NULL));
    GIVES(PERVMA_EINVALID, pervma_reserve(NULL, 0, PAGE, &reservation));
    GIVES(PERVMA_EINVALID, pervma_reserve(space, 0, PAGE, NULL));
    GIVES(PERVMA_EINVALID, pervma_commit(NULL, 1));
    GIVES(PERVMA_EINVALID, pervma_abort(NULL));
    GIVES(PERVMA_EINVALID, pervma_region_map_file(0, 0, 0, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_region_map_file(-1, 0, 0, NULL, &region));
    GIVES(PERVMA_EINVALID, pervma_region_map_file(1 << 20, 0, 0, NULL, &region));
    GIVES(PERVMA_EINVALID, pervma_region_map_memory(NULL, PAGE, NULL, &region));
    GIVES(PERVMA_EINVALID, pervma_region_map_memory(&byte, 1, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_region_map_memory(&byte, 0, NULL, &region));
    GIVES(PERVMA_EINVALID, pervma_region_map_source(NULL, NULL, &region));
    GIVES(PERVMA_EINVALID, pervma_region_destroy(NULL));
    GIVES(PERVMA_EINVALID, pervma_region_read(NULL, 0, &byte, 1, NULL));
    GIVES(PERVMA_EINVALID, pervma_region_write(NULL, 0, &byte, 1, NULL));
    GIVES(PERVMA_EINVALID, pervma_region_discard(NULL, 0, PAGE));
    GIVES(PERVMA_EINVALID, pervma_region_protect(NULL, 0, PAGE, PERVMA_PROTECTION_NONE));
    GIVES(PERVMA_EINVALID, pervma_region_protect(NULL, 0, PAGE, 17));
    GIVES(PERVMA_EINVALID, pervma_region_unmap(NULL, 0, PAGE));
    GIVES(PERVMA_EINVALID, pervma_region_map(NULL, 0, PAGE));
    GIVES(PERVMA_EINVALID, pervma_region_write_back(NULL, 0, PAGE, NULL));
    GIVES(PERVMA_EINVALID, pervma_region_sync(NULL, 0, PAGE, NULL));
    GIVES(PERVMA_EINVALID, pervma_region_write_back_failure(NULL, NULL, NULL));
    GIVES(PERVMA_EINVALID, pervma_region_prefetch(NULL, 0, PAGE, NULL));
    GIVES(PERVMA_EINVALID, pervma_region_pin(NULL, 0, PAGE, 0, &pin));
    GIVES(PERVMA_EINVALID, pervma_unpin(NULL));
    GIVES(PERVMA_EINVALID, pervma_region_resize(NULL, PAGE));
    GIVES(PERVMA_EINVALID, pervma_region_relocate(NULL, PAGE));
    GIVES(PERVMA_EINVALID, pervma_region_stats(NULL, &counts));
    GIVES(PERVMA_EINVALID, pervma_bound_create(1 << 20, 0, 0, NULL));
    GIVES(PERVMA_EINVALID, pervma_bound_destroy(NULL));
    REQUIRE(pervma_count(NULL) == 0 && pervma_region_len(NULL) == 0);
    REQUIRE(pervma_region_memory(NULL) == NULL && pervma_region_page_size(NULL) == 0);
    REQUIRE(!pervma_region_serves_system_calls(NULL) && pervma_bound_resident(NULL) == 0);

    pervma_space_options options = { 0 };
    options.granularity = 3;
    GIVES(PERVMA_EINVALID, pervma_space_create(&options, &made));
    options.granularity = 0;
    options.reserved[2] = 1;
    GIVES(PERVMA_EINVALID, pervma_space_create(&options, &made));
    GIVES(PERVMA_EINVALID, pervma_lookup(space, 0, (pervma_vma *)((char *)&vma + 1)));
}

static void ranges(void)
{
    GIVES(PERVMA_EUNALIGNED, pervma_insert(space, 1, PAGE, 1));
    GIVES(PERVMA_EUNALIGNED, pervma_remove(space, 0, PAGE + 1, NULL, NULL));
    GIVES(PERVMA_EEMPTY, pervma_insert(space, PAGE, PAGE, 1));
    GIVES(PERVMA_EOVERFLOW, pervma_insert(space, 2 * PAGE, PAGE, 1));
    GIVES(PERVMA_EOVERFLOW, pervma_set(space, 2 * PAGE, PAGE, 1, NULL, NULL));
    GIVES(PERVMA_EOVERFLOW, pervma_relocate(space, PAGE, 2 * PAGE, (uintptr_t)-PAGE, NULL, NULL,
                                            NULL));
    pervma_exclusion *exclusion;
    GIVES(PERVMA_EUNALIGNED, pervma_exclude(space, 1, PAGE, &exclusion));
    pervma_gap gap = { PAGE, 3, 0, 0, 0 };
    uintptr_t found;
    GIVES(PERVMA_EINVALID, pervma_find_gap(space, &gap, &found));
    gap.align = 0;
    gap.size = 5;
    GIVES(PERVMA_EINVALID, pervma_find_gap(space, &gap, &found));
    gap.size = 0;
    GIVES(PERVMA_EINVALID, pervma_find_gap(space, &gap, &found));
    gap.size = (size_t)-PAGE;
    gap.low = PAGE;
    GIVES(PERVMA_ENO_GAP, pervma_find_gap(space, &gap, &found));
}

static void stale_handles(void)
{
    pervma_space *gone;
    pervma_vma vma;
    OK(pervma_space_create(NULL, &gone));
    OK(pervma_space_destroy(gone));
    GIVES(PERVMA_EHANDLE, pervma_space_destroy(gone));
    GIVES(PERVMA_EHANDLE, pervma_insert(gone, 0, PAGE, 1));
    GIVES(PERVMA_EHANDLE, pervma_lookup(gone, 0, &vma));
    REQUIRE(pervma_count(gone) == 0);
    for (int i = 0; i < 50; i++) { /* also when others have come and gone */
        pervma_space *other;
        OK(pervma_space_create(NULL, &other));
        REQUIRE(other != gone);
        OK(pervma_space_destroy(other));
        GIVES(PERVMA_EHANDLE, pervma_insert(gone, 0, PAGE, 1));
    }

    /* Of another kind. */
    pervma_reservation *reservation;
    OK(pervma_reserve(space, 64 * PAGE, 65 * PAGE, &reservation));
    GIVES(PERVMA_EHANDLE, pervma_insert((pervma_space *)reservation, 0, PAGE, 1));
    GIVES(PERVMA_EHANDLE, pervma_region_destroy((pervma_region *)space));
    GIVES(PERVMA_EHANDLE, pervma_insert((pervma_space *)((char *)space + 1), 0, PAGE, 1));
    OK(pervma_abort(reservation));
    GIVES(PERVMA_EHANDLE, pervma_abort(reservation));

    pervma_bound *bound;
    OK(pervma_bound_create(1 << 20, 0, 0, &bound));
    OK(pervma_bound_destroy(bound));
    GIVES(PERVMA_EHANDLE, pervma_bound_destroy(bound));
    GIVES(PERVMA_EINVALID, pervma_bound_create(1, 0, 0, &bound));
    GIVES(PERVMA_EINVALID, pervma_bound_create(1 << 20, 2 << 20, 1 << 20, &bound));
}

static void guards(void)
{
    pervma_guard guard, copy;
    memset(&guard, 0, sizeof guard);
    GIVES(PERVMA_EHANDLE, pervma_read_end(&guard)); /* never begun */
    OK(pervma_read_begin(space, PAGE, &guard));
    copy = guard;
    GIVES(PERVMA_EHANDLE, pervma_read_end(&copy)); /* a copy */
    GIVES(PERVMA_EGUARD, pervma_remove(space, PAGE, 2 * PAGE, NULL, NULL));
    GIVES(PERVMA_EGUARD, pervma_insert(space, 64 * PAGE, 65 * PAGE, 1));
    GIVES(PERVMA_EGUARD, pervma_edit_begin(space));
    GIVES(PERVMA_EGUARD, pervma_space_destroy(space));
    OK(pervma_read_end(&guard));
    GIVES(PERVMA_EHANDLE, pervma_read_end(&guard)); /* twice */
}

static pervma_guard others_guard;
static pervma_exclusion *others_exclusion;
static pervma_reader *others_reader;

static void *other_thread(void *argument)
{
    (void)argument;
    pervma_vma vma;
    GIVES(PERVMA_ETHREAD, pervma_read_end(&others_guard));
    GIVES(PERVMA_EIN_USE, pervma_space_destroy(space));
    GIVES(PERVMA_ETHREAD, pervma_edit_end(space));
    GIVES(PERVMA_ETHREAD, pervma_reader_lookup(others_reader, PAGE, &vma));
    GIVES(PERVMA_ETHREAD, pervma_reader_unregister(others_reader));
    return NULL;
}

static void *yet_another(void *argument)
{
    (void)argument;
    GIVES(PERVMA_ETHREAD, pervma_exclusion_wait(others_exclusion, 0));
    GIVES(PERVMA_ETHREAD, pervma_exclusion_remove(others_exclusion, NULL, NULL));
    GIVES(PERVMA_ETHREAD, pervma_exclusion_abandon(others_exclusion));
    return NULL;
}

static void other_threads(void)
{
    pthread_t thread;
    OK(pervma_reader_register(space, &others_reader));
    OK(pervma_read_begin(space, PAGE, &others_guard));
    REQUIRE(pthread_create(&thread, NULL, other_thread, NULL) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    OK(pervma_read_end(&others_guard));
    OK(pervma_reader_unregister(others_reader));
    OK(pervma_exclude(space, PAGE, 2 * PAGE, &others_exclusion));
    REQUIRE(pthread_create(&thread, NULL, yet_another, NULL) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    OK(pervma_exclusion_abandon(others_exclusion));
}

static void *hold(void *argument)
{
    OK(pervma_read_begin(space, PAGE, argument));
    return NULL;
}

/* A guard that its thread has not ended. */
static void destroy_with_a_guard(void)
{
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, hold, &others_guard) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    GIVES(PERVMA_EIN_USE, pervma_space_destroy(space));
    GIVES(PERVMA_ETHREAD, pervma_read_end(&others_guard));
    pervma_exclusion *exclusion;
    OK(pervma_exclude(space, PAGE, 2 * PAGE, &exclusion));
    GIVES(PERVMA_ETIMED_OUT, pervma_exclusion_wait(exclusion, 1000));
    OK(pervma_exclusion_abandon(exclusion));
}

static int calls_back(void *context, uint64_t payload, size_t len, uint64_t next, uint64_t *merged)
{
    pervma_vma vma;
    pervma_space *of = *(pervma_space **)context;
    (void)len;
    (void)merged;
    GIVES(PERVMA_EBUSY_OWN, pervma_insert(of, 64 * PAGE, 65 * PAGE, 1));
    GIVES(PERVMA_EBUSY_OWN, pervma_edit_begin(of));
    GIVES(PERVMA_EBUSY_OWN, pervma_prev(of, UINTPTR_MAX, &vma));
    return payload == next;
}

static void edits(void)
{
    GIVES(PERVMA_ETHREAD, pervma_edit_end(space));
    OK(pervma_edit_begin(space));
    GIVES(PERVMA_EBUSY_OWN, pervma_edit_begin(space));
    GIVES(PERVMA_EBUSY_OWN, pervma_space_destroy(space));
    OK(pervma_edit_end(space));

    /* Calls in a callback that runs under the lock. */
    static pervma_space *merging;
    pervma_space_options options = { 0 };
    options.merge = calls_back;
    options.context = &merging;
    OK(pervma_space_create(&options, &merging));
    OK(pervma_insert(merging, PAGE, 2 * PAGE, 1));
    OK(pervma_insert_merging(merging, 2 * PAGE, 3 * PAGE, 1));
    OK(pervma_edit_begin(merging));
    OK(pervma_insert_merging(merging, 3 * PAGE, 4 * PAGE, 1));
    REQUIRE(pervma_count(merging) == 1);
    OK(pervma_edit_end(merging));
    OK(pervma_space_destroy(merging));
}

static void *begins(void *of)
{
    OK(pervma_edit_begin(of));
    return NULL;
}

static void *ends(void *of)
{
    GIVES(PERVMA_ETHREAD, pervma_edit_end(of));
    GIVES(PERVMA_ETIMED_OUT, pervma_edit_begin_timed(of, 0));
    return NULL;
}

/* The edit of a thread that has ended is not that of another, which has its memory as a rule. */
static void edits_of_the_dead(void)
{
    pervma_space *left; /* for ever */
    pthread_t thread;
    OK(pervma_space_create(NULL, &left));
    REQUIRE(pthread_create(&thread, NULL, begins, left) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    REQUIRE(pthread_create(&thread, NULL, ends, left) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
}

static void handlers(void)
{
    pervma_vma vma;
    pervma_handler_leave(); /* without an enter: nothing */
    pervma_handler_enter();
    GIVES(PERVMA_EIN_HANDLER, pervma_insert(space, 64 * PAGE, 65 * PAGE, 1));
    GIVES(PERVMA_EIN_HANDLER, pervma_edit_begin(space));
    GIVES(PERVMA_EIN_HANDLER, pervma_lookup_wait(space, PAGE, &vma));
    GIVES(PERVMA_EIN_HANDLER, pervma_space_destroy(space));
    OK(pervma_lookup(space, PAGE, &vma));
    pervma_handler_leave();
    OK(pervma_lookup_wait(space, PAGE, &vma));
}

static volatile pervma_status in_handler = PERVMA_EINTERNAL;

static void on_usr1(int signal)
{
    pervma_vma vma;
    (void)signal;
    in_handler = pervma_lookup(space, 2 * PAGE, &vma);
}

static int interrupted(void *context, uintptr_t start, uintptr_t end, uint64_t *payload)
{
    (void)context;
    (void)start;
    (void)end;
    (void)payload;
    raise(SIGUSR1);
    return 1;
}

/* A handler on another stack, above the one that it interrupts, is not a frame that was left. */
static void handler_in_a_callback(void)
{
    static char below[1 << 16]; /* in the program's own memory, below all stacks */
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_usr1;
    action.sa_flags = SA_ONSTACK;
    REQUIRE(sigaction(SIGUSR1, &action, NULL) == 0);
    char on_this_stack[1 << 16]; /* above all frames that are called from here */
    char *stacks[] = { below, on_this_stack };
    for (int i = 0; i < 2; i++) {
        stack_t stack;
        memset(&stack, 0, sizeof stack);
        stack.ss_sp = stacks[i];
        stack.ss_size = 1 << 16;
        REQUIRE(sigaltstack(&stack, NULL) == 0);
        OK(pervma_update(space, PAGE, 2 * PAGE, interrupted, NULL, NULL));
        REQUIRE(in_handler == PERVMA_EBUSY_OWN); /* of this thread's exclusion */
        OK(pervma_edit_begin(space));
        OK(pervma_update(space, PAGE, 2 * PAGE, interrupted, NULL, NULL));
        REQUIRE(in_handler == PERVMA_EBUSY_OWN);
        OK(pervma_edit_end(space));
    }
    stack_t none;
    memset(&none, 0, sizeof none);
    none.ss_flags = SS_DISABLE;
    REQUIRE(sigaltstack(&none, NULL) == 0);
}

static jmp_buf out;

static int jumps(void *context, uintptr_t start, uintptr_t end, uint64_t *payload)
{
    (void)context;
    (void)start;
    (void)end;
    (void)payload;
    longjmp(out, 1);
}

/* Aborts. */
static void longjmp_out_of_a_callback(void)
{
    if (setjmp(out) == 0)
        pervma_update(space, PAGE, 2 * PAGE, jumps, NULL, NULL);
    pervma_vma vma;
    pervma_lookup(space, PAGE, &vma);
    puts("it went on");
}

static int fails_to_read(void *context, uint64_t offset, void *buffer, size_t len)
{
    (void)context;
    (void)offset;
    (void)buffer;
    (void)len;
    return -5;
}

static void count(void *context)
{
    ++*(int *)context;
}

static void regions(void)
{
    pervma_region *region;
    pervma_source source = { 0 };
    pervma_region_options options = { 0 };
    int ended = 0;
    char bytes[2] = { 0 };
    size_t done = 9;
    source.size = 4 * PAGE;
    source.destroy = count;
    source.context = &ended;
    GIVES(PERVMA_EINVALID, pervma_region_map_source(&source, NULL, &region)); /* no read */
    source.read = fails_to_read;
    options.granule = 3;
    GIVES(PERVMA_EINVALID, pervma_region_map_source(&source, &options, &region));
    options.granule = 0;
    options.bound = (pervma_bound *)space;
    GIVES(PERVMA_EHANDLE, pervma_region_map_source(&source, &options, &region));
    options.bound = NULL;
    options.reserved[0] = 1;
    GIVES(PERVMA_EINVALID, pervma_region_map_source(&source, &options, &region));
    REQUIRE(ended == 0); /* the source is still the caller's */

    OK(pervma_region_map_source(&source, NULL, &region));
    GIVES(PERVMA_EUNAVAILABLE, pervma_region_read(region, 0, bytes, 2, &done));
    REQUIRE(done == 0);
    GIVES(PERVMA_ENOT_MAPPED, pervma_region_read(region, 5 * PAGE, bytes, 2, &done));
    GIVES(PERVMA_EPROTECTED, pervma_region_write(region, 0, bytes, 2, &done));
    GIVES(PERVMA_EPROTECTED, pervma_region_protect(region, 0, PAGE, PERVMA_PROTECTION_READ_WRITE));
    GIVES(PERVMA_EINVALID, pervma_region_protect(region, 0, PAGE, -1));
    GIVES(PERVMA_EUNALIGNED, pervma_region_discard(region, 0, 5));
    GIVES(PERVMA_EUNALIGNED, pervma_region_discard(region, 0, 64 * PAGE));
    GIVES(PERVMA_EOVERLAP, pervma_region_map(region, 0, PAGE));
    GIVES(PERVMA_EINVALID, pervma_region_resize(region, 0));
    GIVES(PERVMA_EINVALID, pervma_region_resize(region, 64 * PAGE));
    OK(pervma_region_destroy(region));
    REQUIRE(ended == 1);
    GIVES(PERVMA_EHANDLE, pervma_region_destroy(region));
    GIVES(PERVMA_EHANDLE, pervma_region_discard(region, 0, PAGE));
    REQUIRE(pervma_region_memory(region) == NULL);
}

static pervma_region *of_source;

/* What waits for this very function is refused in it. */
static int uses_its_region(void *context, uint64_t offset, void *buffer, size_t len)
{
    pervma_pin *pin;
    (void)context;
    (void)offset;
    (void)buffer;
    (void)len;
    GIVES(PERVMA_EBUSY_OWN, pervma_region_destroy(of_source));
    GIVES(PERVMA_EBUSY_OWN, pervma_region_discard(of_source, 0, PAGE));
    GIVES(PERVMA_EBUSY_OWN, pervma_region_resize(of_source, PAGE));
    GIVES(PERVMA_EBUSY_OWN, pervma_region_pin(of_source, 0, PAGE, 0, &pin));
    return 0;
}

static void regions_in_their_sources(void)
{
    pervma_source source = { 0 };
    pervma_region_options options = { 0 };
    char byte;
    source.size = 4 * PAGE;
    source.read = uses_its_region;
    for (int threads = 0; threads < 2; threads++) {
        options.handler_threads = threads;
        OK(pervma_region_map_source(&source, &options, &of_source));
        OK(pervma_region_read(of_source, 0, &byte, 1, NULL));
        byte = *((volatile char *)pervma_region_memory(of_source) + PAGE);
        REQUIRE(byte == 0);
        GIVES(PERVMA_EOVERFLOW, pervma_region_read(of_source, 0, &byte, SIZE_MAX, NULL));
        GIVES(PERVMA_EOVERFLOW, pervma_region_write(of_source, 0, &byte, SIZE_MAX, NULL));
        OK(pervma_region_destroy(of_source));
    }
    GIVES(PERVMA_EOVERFLOW, pervma_region_map_memory(&byte, SIZE_MAX, NULL, &of_source));
}

static pervma_exclusion *waited_for;
static volatile sig_atomic_t was_refused;

/* Between two calls it ends the exclusion, as it may. */
static void ends_it(int signal)
{
    (void)signal;
    pervma_status status = pervma_exclusion_abandon(waited_for);
    REQUIRE(status == PERVMA_OK || status == PERVMA_EHANDLE || status == PERVMA_EBUSY_OWN);
    was_refused |= status == PERVMA_EBUSY_OWN;
}

struct reading {
    sem_t begun, ending;
};

static void *reads(void *of)
{
    struct reading *reading = of;
    pervma_guard guard;
    OK(pervma_read_begin(space, PAGE, &guard));
    sem_post(&reading->begun);
    sem_wait(&reading->ending);
    OK(pervma_read_end(&guard));
    return NULL;
}

static void *interrupts(void *waiter)
{
    while (!was_refused) {
        pthread_kill(*(pthread_t *)waiter, SIGUSR1);
        usleep(100);
    }
    return NULL;
}

/* A handler ends the exclusion that the call waits for which it has interrupted. */
static void exclusions_in_handlers(void)
{
    struct reading reading;
    pthread_t reader, interrupter, here = pthread_self();
    REQUIRE(sem_init(&reading.begun, 0, 0) == 0 && sem_init(&reading.ending, 0, 0) == 0);
    REQUIRE(pthread_create(&reader, NULL, reads, &reading) == 0);
    sem_wait(&reading.begun);
    OK(pervma_exclude(space, PAGE, 2 * PAGE, &waited_for));
    REQUIRE(signal(SIGUSR1, ends_it) != SIG_ERR);
    REQUIRE(pthread_create(&interrupter, NULL, interrupts, &here) == 0);
    while (!was_refused)
        if (pervma_exclusion_wait(waited_for, 10000000) == PERVMA_EHANDLE)
            OK(pervma_exclude(space, PAGE, 2 * PAGE, &waited_for));
    REQUIRE(pthread_join(interrupter, NULL) == 0);
    sem_post(&reading.ending);
    REQUIRE(pthread_join(reader, NULL) == 0);
}

static void forks(void)
{
    pervma_guard guard;
    pervma_slab *slab;
    /* Not the child of a fork that was prepared. */
    OK(pervma_read_begin(space, PAGE, &guard));
    pervma_fork_child();
    OK(pervma_read_end(&guard));

    pervma_fork_prepare();
    OK(pervma_read_begin(space, PAGE, &guard));
    OK(pervma_read_end(&guard));
    GIVES(PERVMA_EBUSY_OWN, pervma_slab_create(&slab));
    GIVES(PERVMA_EBUSY_OWN, pervma_insert(space, 64 * PAGE, 65 * PAGE, 1));
    pervma_fork_parent();
    OK(pervma_slab_create(&slab));
    OK(pervma_slab_destroy(slab));
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    { "nulls", nulls },
    { "ranges", ranges },
    { "stale_handles", stale_handles },
    { "guards", guards },
    { "other_threads", other_threads },
    { "destroy_with_a_guard", destroy_with_a_guard },
    { "edits", edits },
    { "edits_of_the_dead", edits_of_the_dead },
    { "handlers", handlers },
    { "handler_in_a_callback", handler_in_a_callback },
    { "regions", regions },
    { "regions_in_their_sources", regions_in_their_sources },
    { "exclusions_in_handlers", exclusions_in_handlers },
    { "forks", forks },
    { "longjmp_out_of_a_callback", longjmp_out_of_a_callback },
};

int main(int argc, char **argv)
{
    REQUIRE(argc == 2);
    OK(pervma_space_create(NULL, &space));
    OK(pervma_insert(space, PAGE, 3 * PAGE, 1));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (strcmp(argv[1], cases[i].name) == 0) {
            cases[i].run();
            puts("ok");
            return 0;
        }
    return 2;
}

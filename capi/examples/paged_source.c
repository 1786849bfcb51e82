/*
 * A region over functions: each page is computed when it is touched, and what is written goes back.
 */
#include <pervma.h>

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 4096, PAGES = 256 };

/* Stands for a store that is far away. */
struct store {
    unsigned char pages[PAGES];
    atomic_int reads, writes, broken, gone;
};

static int store_read(void *context, uint64_t offset, void *buffer, size_t len)
{
    struct store *store = context;
    if (atomic_load(&store->broken))
        return -1;
    atomic_fetch_add(&store->reads, 1);
    for (size_t at = 0; at < len; at += PAGE)
        memset((char *)buffer + at, store->pages[(offset + at) / PAGE], PAGE);
    return 0;
}

static int store_write(void *context, uint64_t offset, const void *bytes, size_t len)
{
    struct store *store = context;
    if (atomic_load(&store->broken))
        return -1;
    atomic_fetch_add(&store->writes, 1);
    for (size_t at = 0; at < len; at += PAGE)
        store->pages[(offset + at) / PAGE] = *((const unsigned char *)bytes + at);
    return 0;
}

static void store_destroy(void *context)
{
    struct store *store = context;
    atomic_fetch_add(&store->gone, 1);
}

static void check(pervma_status status, const char *what)
{
    if (status != PERVMA_OK) {
        fprintf(stderr, "%s: %s (%s)\n", what, pervma_strerror(status), pervma_last_error());
        exit(status == PERVMA_ESYSTEM ? 77 : 1);
    }
}

static void require(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "does not hold: %s\n", what);
        exit(1);
    }
}

int main(void)
{
    static struct store store;
    for (int i = 0; i < PAGES; i++)
        store.pages[i] = (unsigned char)i;

    pervma_source source = { 0 };
    source.size = PAGES * PAGE;
    source.read = store_read;
    source.write = store_write;
    source.destroy = store_destroy;
    source.context = &store;
    pervma_region_options options = { 0 };
    options.handler_threads = 2; /* the functions may lock and allocate */
    options.writable = 1;
    options.resident = 64 * PAGE;
    pervma_region *region;
    check(pervma_region_map_source(&source, &options, &region), "map");

    /* Faults: more pages than may be present. */
    volatile unsigned char *memory = pervma_region_memory(region);
    for (int i = 0; i < PAGES; i++)
        require(memory[i * PAGE + i] == i, "a page is what the source says");
    require(atomic_load(&store.reads) >= PAGES, "each was read");
    pervma_region_counts counts;
    check(pervma_region_stats(region, &counts), "stats");
    /* The two threads may have to count what they have just filled. */
    require(counts.pages + 2 >= PAGES && counts.resident <= options.resident, "the bound is kept");

    /* What is written goes back. */
    for (int i = 0; i < 8; i++)
        memory[i * PAGE] = (unsigned char)(100 + i);
    size_t bytes = 0;
    check(pervma_region_sync(region, 0, 8 * PAGE, &bytes), "sync");
    for (int i = 0; i < 8; i++)
        require(store.pages[i] == 100 + i, "it is in the store");
    require(bytes <= 8 * PAGE, "no more than was written");
    check(pervma_region_discard(region, 0, PAGE), "discard");
    require(memory[1] == 100, "read again");

    /* What stays, what does not go through. */
    pervma_pin *pin;
    check(pervma_region_pin(region, 16 * PAGE, 18 * PAGE, 0, &pin), "pin");
    require(pervma_region_discard(region, 17 * PAGE, 18 * PAGE) == PERVMA_EPINNED, "pinned");
    require(pervma_region_resize(region, PAGE) == PERVMA_EPINNED, "as a whole, too");
    require(pervma_region_destroy(region) == PERVMA_EIN_USE, "a pin is left");
    check(pervma_unpin(pin), "unpin");
    require(pervma_unpin(pin) == PERVMA_EHANDLE, "only once");
    size_t reached = 0;
    check(pervma_region_prefetch(region, 32 * PAGE, 40 * PAGE, &reached), "prefetch");
    require(reached == 40 * PAGE, "all of it");
    check(pervma_region_protect(region, 0, PAGE, PERVMA_PROTECTION_READ), "protect");
    require(pervma_region_write(region, 5, "x", 1, NULL) == PERVMA_EPROTECTED, "no write there");
    check(pervma_region_protect(region, 0, PAGE, PERVMA_PROTECTION_READ_WRITE), "protect");

    /* Failures, as errors. */
    char copy[2 * PAGE];
    size_t done = 0;
    check(pervma_region_discard(region, 201 * PAGE, 202 * PAGE), "discard");
    check(pervma_region_read(region, 200 * PAGE, copy, PAGE, NULL), "read");
    atomic_store(&store.broken, 1);
    pervma_status status = pervma_region_read(region, 200 * PAGE, copy, 2 * PAGE, &done);
    require(status == PERVMA_EUNAVAILABLE && done == PAGE, "one page was there");
    check(pervma_region_write(region, 200 * PAGE, "y", 1, NULL), "write");
    status = pervma_region_write_back(region, 200 * PAGE, 201 * PAGE, NULL);
    require(status == PERVMA_ESOURCE, "the store does not take it");
    require(strstr(pervma_last_error(), "write returned -1") != NULL, "and says why");
    atomic_store(&store.broken, 0);
    check(pervma_region_discard(region, 201 * PAGE, 202 * PAGE), "discard");
    check(pervma_region_read(region, 201 * PAGE, copy, PAGE, NULL), "it is there again");
    require((unsigned char)copy[0] == 201, "with its bytes");

    check(pervma_region_relocate(region, 2 * PAGES * PAGE), "relocate");
    memory = pervma_region_memory(region);
    require(memory[300] == 100 && memory[200 * PAGE] == 'y', "what was written has moved");
    require(atomic_load(&store.gone) == 0, "the source is in use");
    check(pervma_region_destroy(region), "destroy");
    require(atomic_load(&store.gone) == 1, "the source is gone");
    puts("ok");
    return 0;
}

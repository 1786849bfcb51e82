/* Each function of a region does what the header says: files, memory, failures, bounds. */
#define _GNU_SOURCE
#include "common.h"

#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 64 };

static int file_of(int pages)
{
    static char page[PAGE];
    FILE *file = tmpfile();
    REQUIRE(file != NULL);
    for (int i = 0; i < pages; i++) {
        memset(page, i, PAGE);
        REQUIRE(write(fileno(file), page, PAGE) == PAGE);
    }
    int fd = dup(fileno(file));
    fclose(file);
    return fd;
}

static void files(void)
{
    pervma_region *region;
    pervma_region_options options = { 0 };
    char bytes[PAGE] = { 0 };
    size_t came = 0;
    int fd = file_of(PAGES);
    options.writable = 1;
    options.granule = 4 * PAGE;
    options.capacity = PAGES * PAGE;
    GIVES(PERVMA_EOVERFLOW, pervma_region_map_file(fd, 1, UINT64_MAX, &options, &region));
    GIVES(PERVMA_EINVALID, pervma_region_map_file(fd, 0, 65 * PAGE, &options, &region));
    OK(pervma_region_map_file(fd, 8 * PAGE, 16 * PAGE, &options, &region));
    REQUIRE(pervma_region_len(region) == 16 * PAGE && pervma_region_page_size(region) == PAGE);
    REQUIRE(!pervma_region_serves_system_calls(region));
    volatile char *memory = pervma_region_memory(region);
    REQUIRE(memory[0] == 8 && memory[15 * PAGE] == 23);
    OK(pervma_region_resize(region, 8 * PAGE));
    REQUIRE(pervma_region_len(region) == 8 * PAGE);

    memory[3 * PAGE + 1] = 'x';
    OK(pervma_region_write_back(region, 0, 8 * PAGE, &came));
    REQUIRE(came == PAGE);
    REQUIRE(pread(fd, bytes, PAGE, 11 * PAGE) == PAGE && bytes[0] == 11 && bytes[1] == 'x');
    OK(pervma_region_unmap(region, PAGE, 2 * PAGE));
    GIVES(PERVMA_ENOT_MAPPED, pervma_region_read(region, PAGE, bytes, 1, &came));
    OK(pervma_region_map(region, PAGE, 2 * PAGE));
    OK(pervma_region_read(region, PAGE - 1, bytes, 2, &came));
    REQUIRE(came == 2 && bytes[0] == 8 && bytes[1] == 9);

    /* In signal mode what a system call touches must be there. */
    pervma_pin *pin;
    OK(pervma_region_discard(region, 0, PAGE));
    OK(pervma_region_pin(region, 0, PAGE, 1, &pin));
    REQUIRE(pread(fd, (char *)memory, PAGE, 0) == PAGE && memory[5] == 0);
    OK(pervma_unpin(pin));
    OK(pervma_region_write_back_failure(region, NULL, NULL));
    OK(pervma_region_destroy(region));
    close(fd);
}

static sigjmp_buf back;
static size_t failed_at;

static int leaves(void *context, const pervma_failure *failure)
{
    REQUIRE(context == &failed_at && failure->ucontext != NULL);
    failed_at = failure->offset;
    siglongjmp(back, 1);
}

static int fails_above(void *context, uint64_t offset, void *buffer, size_t len)
{
    if (offset >= *(uint64_t *)context)
        return 1;
    memset(buffer, 7, len);
    return 0;
}

static void failures(void)
{
    static uint64_t limit = 2 * PAGE;
    pervma_region *region;
    pervma_source source = { 0 };
    pervma_region_options options = { 0 };
    source.size = 4 * PAGE;
    source.read = fails_above;
    source.context = &limit;
    options.on_failure = leaves;
    options.failure_context = &failed_at;
    OK(pervma_region_map_source(&source, &options, &region));
    volatile char *memory = pervma_region_memory(region);
    if (sigsetjmp(back, 1) == 0) {
        REQUIRE(memory[0] == 7); /* the functions run in the handler */
        REQUIRE(memory[3 * PAGE + 9] == 7 && "it was there");
    }
    REQUIRE(failed_at == 3 * PAGE + 9);
    pervma_region_counts counts;
    OK(pervma_region_stats(region, &counts));
    REQUIRE(counts.failures == 1 && counts.pages == 1 && counts.resident == PAGE);
    OK(pervma_region_destroy(region));
}

/* A process that would rather end. It is forked before there is any region. */
static void exits(void)
{
    static uint64_t limit = 2 * PAGE;
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        pervma_region *region;
        pervma_source source = { 0 };
        pervma_region_options options = { 0 };
        source.size = 4 * PAGE;
        source.read = fails_above;
        source.context = &limit;
        options.exit_message = "";
        options.exit_code = 9;
        OK(pervma_region_map_source(&source, &options, &region));
        volatile char *memory = pervma_region_memory(region);
        (void)memory[3 * PAGE];
        _exit(0);
    }
    int status;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 9);
}

static void serve(int signal, siginfo_t *info, void *context)
{
    if (!pervma_serve_sigbus(signal, info, context))
        _exit(1);
}

static void bounds(void)
{
    static unsigned char bytes[PAGES * PAGE];
    pervma_bound *bound;
    pervma_region *regions[2];
    pervma_region_options options = { 0 };
    memset(bytes, 5, sizeof bytes);
    OK(pervma_bound_create(16 * PAGE, 4 * PAGE, 12 * PAGE, &bound));
    options.bound = bound;
    for (int i = 0; i < 2; i++)
        OK(pervma_region_map_memory(bytes, sizeof bytes, &options, &regions[i]));
    pervma_pin *pin;
    GIVES(PERVMA_EBOUND, pervma_region_pin(regions[0], 0, 16 * PAGE, 0, &pin));
    OK(pervma_bound_destroy(bound)); /* the regions keep it */

    /* A handler of the program's, which passes on. */
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = serve;
    action.sa_flags = SA_SIGINFO;
    sigfillset(&action.sa_mask);
    REQUIRE(sigaction(SIGBUS, &action, NULL) == 0);
    for (int i = 0; i < 2; i++) {
        volatile unsigned char *memory = pervma_region_memory(regions[i]);
        for (int page = 0; page < PAGES; page++)
            REQUIRE(memory[page * PAGE + page] == 5);
    }
    OK(pervma_install_sigbus());
    for (int i = 0; i < 2; i++) {
        pervma_region_counts counts;
        do /* another thread gives back, and counts */
            OK(pervma_region_stats(regions[i], &counts));
        while (counts.given_back < PAGES - 16);
        REQUIRE(counts.pages >= PAGES);
        OK(pervma_region_destroy(regions[i]));
    }
}

static atomic_int told;

static int refuses(void *context, uint64_t offset, const void *bytes, size_t len)
{
    (void)context;
    (void)offset;
    (void)bytes;
    (void)len;
    return 28;
}

static void on_write_back_failure(void *context, size_t start, size_t end, const char *reason)
{
    REQUIRE(context == &told && start < end);
    REQUIRE(strstr(reason, "write returned 28") != NULL);
    atomic_fetch_add(&told, 1);
}

static void failing_writes(void)
{
    static uint64_t limit = PAGES * PAGE;
    pervma_region *region;
    pervma_source source = { 0 };
    pervma_region_options options = { 0 };
    source.size = PAGES * PAGE;
    source.read = fails_above;
    source.write = refuses;
    source.context = &limit;
    options.writable = 1;
    options.resident = 16 * PAGE;
    options.handler_threads = 1;
    options.on_write_back_failure = on_write_back_failure;
    options.write_back_context = &told;
    OK(pervma_region_map_source(&source, &options, &region));
    pervma_status status = PERVMA_OK;
    for (int page = 0; status == PERVMA_OK && page < PAGES; page++)
        status = pervma_region_write(region, (size_t)page * PAGE, "z", 1, NULL);
    REQUIRE(status == PERVMA_EBOUND);
    size_t start = 0, end = 0;
    while (atomic_load(&told) == 0) /* by another thread */
        usleep(1000);
    GIVES(PERVMA_ESOURCE, pervma_region_write_back_failure(region, &start, &end));
    REQUIRE(start < end && strstr(pervma_last_error(), "write returned 28") != NULL);
    OK(pervma_region_destroy(region));
}

int main(void)
{
    alarm(100); /* where this waits for other threads */
    exits();
    files();
    failures();
    bounds();
    failing_writes();
    puts("ok");
    return 0;
}

/* umap/umap.h: UMap's functions in C++, and its stores. Run with several settings; the argument is a
 * folder for files. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "common.h"

#include <umap/store/SparseStore.h>
#include <umap/umap.h>

#include <atomic>
#include <cstring>
#include <fcntl.h>
#include <thread>
#include <vector>

static uint64_t page_size;
static std::string folder;

/* Touches each page from several threads, in different orders, again and again: p[i] == i + add. */
static void fill(uint64_t *words, uint64_t pages, uint64_t add)
{
    uint64_t in_page = page_size / sizeof *words;
    std::vector<std::thread> threads;
    for (uint64_t thread = 0; thread < 2; thread++)
        threads.emplace_back([=] {
            for (uint64_t n = thread; n < pages; n += 2) {
                uint64_t at = n * 7 % pages * in_page;
                words[at] = at + add;
                words[at + in_page - 1] = at + add;
            }
        });
    for (std::thread &thread : threads)
        thread.join();
}

static void expect(const uint64_t *words, uint64_t pages, uint64_t add)
{
    uint64_t in_page = page_size / sizeof *words;
    for (uint64_t page = 0; page < pages; page++) {
        uint64_t at = page * in_page;
        REQUIRE(words[at] == at + add && words[at + in_page - 1] == at + add);
    }
}

/* Beyond the buffer, through a descriptor with O_DIRECT where there are such. */
static void files(uint64_t pages)
{
    std::string name = folder + "/file";
    size_t bytes = pages * page_size;
    int fd = open(name.c_str(), O_RDWR | O_CREAT | O_DIRECT, 0600);
    if (fd == -1)
        fd = open(name.c_str(), O_RDWR | O_CREAT, 0600);
    REQUIRE(fd >= 0 && posix_fallocate(fd, 0, (off_t)bytes) == 0);

    int both = PROT_READ | PROT_WRITE;
    uint64_t *words = (uint64_t *)umap(NULL, bytes, both, UMAP_PRIVATE, fd, 0);
    if (words == UMAP_FAILED && errno == ENOMEM) {
        puts(pervma_last_error());
        exit(77); /* the system refuses */
    }
    REQUIRE(words != UMAP_FAILED);
    REQUIRE((page_size & (page_size - 1)) != 0 || (uintptr_t)words % page_size == 0);
    fill(words, pages, 1);
    expect(words, pages, 1);
    fill(words, pages, 2);
    REQUIRE(umap_flush() == 0);

    /* By other means, while it is mapped. */
    int other = open(name.c_str(), O_RDONLY);
    std::vector<uint64_t> read(bytes / sizeof(uint64_t));
    for (size_t at = 0; at < bytes;) {
        ssize_t got = pread(other, (char *)read.data() + at, bytes - at, (off_t)at);
        REQUIRE(got > 0);
        at += (size_t)got;
    }
    close(other);
    expect(read.data(), pages, 2);

    fill(words, pages, 3);
    REQUIRE(uunmap(words, 0) == 0); /* which writes it */
    errno = 0;
    REQUIRE(uunmap(words, bytes) == -1 && errno == EINVAL);

    /* A part, at an address, read only; filled before it is touched. */
    void *there = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(there != MAP_FAILED);
    size_t rest = bytes - page_size;
    const uint64_t *part = (const uint64_t *)umap(there, rest, PROT_READ, UMAP_PRIVATE | UMAP_FIXED,
                                                  fd, (off_t)page_size);
    REQUIRE(part == there);
    struct umap_prefetch_item items[2] = { { (char *)there + 5 }, { (char *)there + page_size } };
    umap_prefetch(2, items);
    umap_fetch_and_pin((char *)there + page_size, page_size);
    REQUIRE(part[0] == page_size / 8 + 3);
    REQUIRE(umap(there, page_size, PROT_READ, UMAP_PRIVATE | UMAP_FIXED, fd, 0) == UMAP_FAILED &&
            errno == EEXIST);
    REQUIRE(uunmap(there, rest) == 0);
    close(fd);

    struct {
        size_t length;
        int prot, flags, fd;
    } refused[] = {
        { 0, PROT_READ, UMAP_PRIVATE, 0 },          { bytes, PROT_WRITE, UMAP_PRIVATE, 0 },
        { bytes, PROT_READ, MAP_SHARED, 0 },        { bytes, PROT_READ, UMAP_PRIVATE, -1 },
        { bytes, PROT_READ, UMAP_PRIVATE, 12345 },  { bytes, PROT_READ, UMAP_PRIVATE, 0 },
        { bytes, PROT_READ | PROT_EXEC, UMAP_PRIVATE, 0 },
        { bytes, PROT_READ, UMAP_PRIVATE | UMAP_FIXED, 0 },
    };
    for (const auto &call : refused) {
        errno = 0;
        REQUIRE(umap(NULL, call.length, call.prot, call.flags, call.fd, 0) == UMAP_FAILED &&
                errno == EINVAL && pervma_last_error()[0] != 0);
    }
    errno = 7;
    umap_prefetch(1, items); /* there is no region any more */
    umap_fetch_and_pin((char *)there, page_size);
    REQUIRE(errno == 7);
}

/* A store of the program's, which fails when it is told to. */
class Words : public Umap::Store {
public:
    explicit Words(uint64_t count) : words(count), is_full(false), writes(0) {}

    ssize_t read_from_store(char *buf, size_t nb, off_t off) override
    {
        REQUIRE((uint64_t)off % page_size + nb <= page_size);
        memcpy(buf, (char *)words.data() + off, nb);
        return (ssize_t)nb;
    }

    ssize_t write_to_store(char *buf, size_t nb, off_t off) override
    {
        REQUIRE((uint64_t)off % page_size + nb <= page_size);
        if (is_full)
            return -1;
        memcpy((char *)words.data() + off, buf, nb);
        writes++;
        return (ssize_t)nb;
    }

    std::vector<uint64_t> words;
    std::atomic<bool> is_full;
    std::atomic<int> writes;
};

static void stores(uint64_t pages)
{
    size_t bytes = pages * page_size;
    int both = PROT_READ | PROT_WRITE;
    Words store(bytes / sizeof(uint64_t));
    uint64_t *words = (uint64_t *)umap_ex(NULL, bytes, both, UMAP_PRIVATE, -1, 0, &store);
    REQUIRE(words != UMAP_FAILED);
    fill(words, pages, 1);
    expect(words, pages, 1);
    REQUIRE(umap_flush() == 0);
    expect(store.words.data(), pages, 1);
    words[0]++;
    store.is_full = true;
    REQUIRE(umap_flush() == -1 && errno == EIO);
    REQUIRE(uunmap(words, bytes) == -1 && errno == EIO);
    store.is_full = false;
    REQUIRE(uunmap(words, bytes) == 0 && store.words[0] == 2);
}

int main(int count, char **arguments)
{
    REQUIRE(count == 2);
    folder = arguments[1];
    page_size = umapcfg_get_umap_page_size();
    REQUIRE(umapcfg_get_max_pages_in_buffer() == 16 && umap_has_write_support());
    REQUIRE(umapcfg_get_num_fillers() == 2 && umapcfg_get_num_evictors() > 0);
    REQUIRE(umapcfg_get_evict_low_water_threshold() == 70);
    REQUIRE(umapcfg_get_evict_high_water_threshold() == 90);
    REQUIRE(umapcfg_get_max_fault_events() == 256 && umapcfg_get_read_ahead() == 0);
    {
        std::lock_guard<std::mutex> locked(Umap::m_mutex);
        REQUIRE(Umap::num_thread == 0);
    }
    files(64);
    stores(64);

    /* Written, and opened again; files of three pages and a page, so that runs cross their ends. */
    std::string root = folder + "/sparse";
    size_t bytes = 30 * page_size;
    for (int round = 0; round < 2; round++) {
        Umap::SparseStore *store =
            round == 0 ? new Umap::SparseStore(bytes, page_size, root, 3 * page_size - 1)
                       : new Umap::SparseStore(root, true);
        REQUIRE(store->get_current_capacity() == bytes);
        int prot = round == 0 ? PROT_READ | PROT_WRITE : PROT_READ;
        uint64_t *words =
            (uint64_t *)Umap::umap_ex(NULL, bytes, prot, UMAP_PRIVATE, -1, 0, store);
        REQUIRE(words != UMAP_FAILED);
        if (round == 0)
            fill(words, 10, 5); /* the other files are not made */
        expect(words, 10, 5);
        REQUIRE(words[29 * page_size / 8] == 0);
        REQUIRE(uunmap(words, bytes) == 0 && store->close_files() == 0);
        delete store;
    }
    REQUIRE(Umap::SparseStore::get_capacity(root) == bytes);
    REQUIRE(access((root + "/9").c_str(), F_OK) == 0);
    REQUIRE(Umap::SparseStore::get_capacity(folder) == 0);

    int fd = open((root + "/0").c_str(), O_RDWR);
    Umap::Store *file = Umap::Store::make_store(NULL, 3 * page_size, page_size, fd);
    uint64_t word;
    REQUIRE(file->read_from_store((char *)&word, sizeof word, 0) == sizeof word && word == 5);
    word = 6;
    REQUIRE(file->write_to_store((char *)&word, sizeof word, 0) == sizeof word);
    REQUIRE(pread(fd, &word, sizeof word, 0) == sizeof word && word == 6);
    delete file;
    close(fd);
    puts("ok");
    return 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * LLNL UMap's interface over pervma: a program that is written for UMap is compiled with
 * `-I .../pervma-umap` in place of UMap's headers, and linked with pervma (pkg-config pervma-umap).
 * What is different is listed in pervma's docs/umap.md.
 *
 * Settings are environment variables: UMAP_PAGESIZE, UMAP_BUFSIZE, UMAP_PAGE_FILLERS,
 * UMAP_EVICT_LOW_WATER_THRESHOLD, UMAP_EVICT_HIGH_WATER_THRESHOLD; and PERVMA_UMAP_MODE:
 *
 *   thread   (default) threads serve faults, also those of system calls
 *   signal   the thread that faults serves the fault, in a signal handler: several times as fast.
 *            System calls that touch a missing page fail with EFAULT, and the functions of an
 *            Umap::Store must be async-signal-safe
 *
 * One that cannot be used ends the program with a line on standard error, when a region is mapped or
 * a setting asked for.
 */
#ifndef PERVMA_UMAP_H
#define PERVMA_UMAP_H

#include <pervma.h>

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#define UMAP_PRIVATE MAP_PRIVATE /* there is no other */
#define UMAP_FIXED MAP_FIXED
#define UMAP_FAILED ((void *)-1)

/* A page to be filled. */
struct umap_prefetch_item {
    void *page_base_addr; /* any address in it */
};

#ifdef __cplusplus
extern "C" {
#endif

/* The settings; ends the program where one cannot be used. */
static inline pervma_umap_settings pervma_umap_settings_or_exit(void)
{
    pervma_umap_settings settings;
    if (pervma_umap_settings_get(&settings) != PERVMA_OK) {
        fprintf(stderr, "umap: %s\n", pervma_last_error());
        exit(1);
    }
    return settings;
}

/* Maps a part of a file. UMAP_FAILED with errno; pervma_last_error has the reason in words. */
static inline void *umap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    pervma_umap_settings_or_exit();
    return pervma_umap(addr, length, prot, flags, fd, offset);
}

/* Writes what was written to the file, and unmaps the region that begins at `addr`, as a whole. 0,
 * or -1 with errno: then it stays. */
static inline int uunmap(void *addr, size_t length)
{
    return pervma_uunmap(addr, length);
}

/* Writes what was written in all regions to their files. 0, or -1 with errno. */
static inline int umap_flush(void)
{
    return pervma_umap_flush();
}

/* Fills pages before they are touched, as far as the buffer has room. */
static inline void umap_prefetch(int npages, struct umap_prefetch_item *page_array)
{
    if (npages > 0) {
        int error = errno;
        pervma_umap_prefetch((size_t)npages, &page_array->page_base_addr);
        errno = error;
    }
}

/* Fills pages, which stay present until the region is unmapped. */
static inline void umap_fetch_and_pin(char *paddr, uint64_t size)
{
    int error = errno;
    pervma_umap_fetch_and_pin(paddr, size);
    errno = error;
}

/* Non-zero: regions can be written. The kernels that pervma needs let them. */
static inline int umap_has_write_support(void)
{
    return 1;
}

static inline uint64_t umapcfg_get_umap_page_size(void)
{
    return pervma_umap_settings_or_exit().page_size;
}

static inline uint64_t umapcfg_get_max_fault_events(void)
{
    return pervma_umap_settings_or_exit().max_fault_events;
}

static inline uint64_t umapcfg_get_num_fillers(void)
{
    return pervma_umap_settings_or_exit().fillers;
}

static inline uint64_t umapcfg_get_num_evictors(void)
{
    return pervma_umap_settings_or_exit().evictors;
}

static inline uint64_t umapcfg_get_max_pages_in_buffer(void)
{
    return pervma_umap_settings_or_exit().buffer_pages;
}

static inline uint64_t umapcfg_get_read_ahead(void)
{
    return pervma_umap_settings_or_exit().read_ahead;
}

static inline int umapcfg_get_evict_low_water_threshold(void)
{
    return (int)pervma_umap_settings_or_exit().low_water;
}

static inline int umapcfg_get_evict_high_water_threshold(void)
{
    return (int)pervma_umap_settings_or_exit().high_water;
}

#ifdef __cplusplus
} /* extern "C" */

#include <cstddef>
#include <mutex>

#include "umap/store/Store.hpp"

namespace Umap {
namespace detail {

/* What UMap's header declares as variables, for programs that name them. Nothing here uses them. */
template <class Unused> struct Variables {
    static std::mutex mutex;
    static int threads;
};
template <class Unused> std::mutex Variables<Unused>::mutex;
template <class Unused> int Variables<Unused>::threads = 0;

/* A store of the program's, as functions for pervma. */
extern "C" {
/* A read is of one UMap page, or of a part of it. */
static inline int pervma_umap_store_read(void *store, uint64_t offset, void *buffer, size_t len)
{
    ssize_t got = static_cast<Store *>(store)->read_from_store(static_cast<char *>(buffer), len,
                                                               static_cast<off_t>(offset));
    /* What is behind the end of a store is zeros, as the buffer is. */
    return got < 0 ? -1 : 0;
}

/* A write may be of several pages, which UMap never asks for. */
static inline int pervma_umap_store_write(void *store, uint64_t offset, const void *bytes,
                                          size_t len)
{
    pervma_umap_settings settings;
    if (pervma_umap_settings_get(&settings) != PERVMA_OK)
        return -1;
    char *next = const_cast<char *>(static_cast<const char *>(bytes));
    while (len > 0) {
        size_t in_page = static_cast<size_t>(settings.page_size - offset % settings.page_size);
        size_t part = len < in_page ? len : in_page;
        if (static_cast<Store *>(store)->write_to_store(next, part, static_cast<off_t>(offset)) !=
            static_cast<ssize_t>(part))
            return -1;
        next += part;
        offset += part;
        len -= part;
    }
    return 0;
}
} // extern "C"

} // namespace detail

static std::mutex &m_mutex __attribute__((unused)) = detail::Variables<void>::mutex;
static int &num_thread __attribute__((unused)) = detail::Variables<void>::threads;

/* As umap, of a store in place of a file, unless that is NULL. Offsets of the store are from the
 * start of the region, whatever `offset` is. The store is the caller's, and stays until uunmap. No
 * exception may leave its functions. */
inline void *umap_ex(void *addr, std::size_t length, int prot, int flags, int fd, off_t offset,
                     Store *store)
{
    if (store == nullptr)
        return ::umap(addr, length, prot, flags, fd, offset);
    pervma_umap_settings_or_exit();
    pervma_source source = pervma_source();
    source.read = detail::pervma_umap_store_read;
    source.write = detail::pervma_umap_store_write;
    source.context = store;
    return pervma_umap_source(addr, length, prot, flags, &source);
}

} // namespace Umap
#endif
#endif

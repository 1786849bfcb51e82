/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* LLNL UMap's stores over pervma: see umap/umap.h. */
#ifndef PERVMA_UMAP_STORE_HPP
#define PERVMA_UMAP_STORE_HPP

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <sys/types.h>
#include <unistd.h>

namespace Umap {

/* Where the bytes of a region come from, and where they go. Its functions are called by several
 * threads at once, and must not touch the region. */
class Store {
public:
    /* The file of a descriptor, which stays the caller's and open. The store is the caller's. */
    static Store *make_store(void *region, std::size_t rsize, std::size_t alignsize, int fd);

    virtual ~Store() = default;

    /* Fills `buf`, which is aligned to pages and is all zeros, with `nb` bytes from `off` on. How
     * many came: behind the store's end, fewer; -1 when they cannot be had. */
    virtual ssize_t read_from_store(char *buf, std::size_t nb, off_t off) = 0;

    /* Stores `nb` bytes, whole pages of 4096 bytes within a UMap page, at `off`. How many: fewer is
     * an error. */
    virtual ssize_t write_to_store(char *buf, std::size_t nb, off_t off) = 0;
};

namespace detail {

/* Makes `call` until it was not interrupted. */
template <class Call> ssize_t uninterrupted(Call call)
{
    ssize_t done;
    do
        done = call();
    while (done == -1 && errno == EINTR);
    return done;
}

class FileStore final : public Store {
public:
    explicit FileStore(int fd) : file(fd) {}

    ssize_t read_from_store(char *buf, std::size_t nb, off_t off) override
    {
        return uninterrupted([&] { return ::pread(file, buf, nb, off); });
    }

    ssize_t write_to_store(char *buf, std::size_t nb, off_t off) override
    {
        return uninterrupted([&] { return ::pwrite(file, buf, nb, off); });
    }

private:
    int file;
};

} // namespace detail

inline Store *Store::make_store(void *, std::size_t, std::size_t, int fd)
{
    return new detail::FileStore(fd);
}

} // namespace Umap
#endif

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* LLNL UMap's sparse store over pervma: see umap/umap.h. */
#ifndef PERVMA_UMAP_SPARSE_STORE_H
#define PERVMA_UMAP_SPARSE_STORE_H

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <fcntl.h>
#include <fstream>
#include <mutex>
#include <stdexcept>
#include <string>
#include <sys/stat.h>
#include <vector>

#include "umap/store/Store.hpp"
#include "umap/umap.h"

namespace Umap {

/* Bytes in a folder of files of one size, of which each is made when it is first touched. UMap can
 * open the folder, and this what UMap has made: `_metadata` has the size of the files and of all, a
 * line each; the files are named by their numbers, from 0.
 *
 * What cannot be opened or made is a std::runtime_error of the constructors. */
class SparseStore : public Store {
public:
    /* Makes the folder, for `rsize` bytes, in files of `file_size` bytes, rounded up to a multiple
     * of `aligned_size`. */
    SparseStore(std::size_t rsize, std::size_t aligned_size, std::string root_path,
                std::size_t file_size)
        : root(root_path), read_only(false)
    {
        if (rsize == 0 || aligned_size == 0 || file_size == 0)
            throw std::runtime_error("SparseStore: a size is 0");
        bytes_of_file = (file_size + aligned_size - 1) / aligned_size * aligned_size;
        capacity = std::max(rsize, bytes_of_file);
        if (::mkdir(root.c_str(), 0775) != 0)
            throw std::runtime_error("SparseStore: " + root + " cannot be made, or is there");
        std::ofstream metadata((root + "/_metadata").c_str());
        metadata << bytes_of_file << std::endl << capacity;
        if (!metadata.flush())
            throw std::runtime_error("SparseStore: " + root + "/_metadata cannot be written");
        files.assign(count_of_files(), -1);
    }

    /* Opens one that was made. */
    SparseStore(std::string root_path, bool is_read_only)
        : root(root_path), read_only(is_read_only)
    {
        std::ifstream metadata((root + "/_metadata").c_str());
        if (!(metadata >> bytes_of_file >> capacity) || bytes_of_file == 0)
            throw std::runtime_error("SparseStore: " + root + "/_metadata cannot be read");
        files.assign(count_of_files(), -1);
    }

    SparseStore(const SparseStore &) = delete;
    SparseStore &operator=(const SparseStore &) = delete;

    ~SparseStore() override { close_files(); }

    ssize_t read_from_store(char *buf, std::size_t nb, off_t off) override
    {
        return in_files(nb, off, [&](int file, std::size_t at, std::size_t len, off_t in_file) {
            /* What a file has not is zeros. */
            std::fill(buf + at, buf + at + len, 0);
            return file == MISSING || detail::uninterrupted([&] {
                                          return ::pread(file, buf + at, len, in_file);
                                      }) >= 0;
        });
    }

    ssize_t write_to_store(char *buf, std::size_t nb, off_t off) override
    {
        return in_files(nb, off, [&](int file, std::size_t at, std::size_t len, off_t in_file) {
            return detail::uninterrupted([&] { return ::pwrite(file, buf + at, len, in_file); }) ==
                   static_cast<ssize_t>(len);
        });
    }

    /* The bytes that it has room for. */
    std::size_t get_current_capacity() { return capacity; }

    /* That of the one in a folder; 0 if none is there. */
    static std::size_t get_capacity(std::string base_path)
    {
        std::ifstream metadata((base_path + "/_metadata").c_str());
        std::size_t ignored, capacity;
        return metadata >> ignored >> capacity ? capacity : 0;
    }

    /* Closes what is open: before the folder is used otherwise, and after uunmap. 0, or -1. */
    int close_files()
    {
        std::lock_guard<std::mutex> locked(opening);
        int result = 0;
        for (int &file : files) {
            if (file != -1 && ::close(file) != 0)
                result = -1;
            file = -1;
        }
        return result;
    }

private:
    /* In place of a descriptor. */
    enum { FAILED = -1, MISSING = -2 };

    std::size_t count_of_files() const { return (capacity + bytes_of_file - 1) / bytes_of_file; }

    /* Runs `each` for the parts of a range that are in one file each. All of it, or -1. */
    template <class Each> ssize_t in_files(std::size_t nb, off_t off, Each each)
    {
        std::size_t from = static_cast<std::size_t>(off);
        if (off < 0 || from > capacity || nb > capacity - from)
            return -1;
        for (std::size_t at = 0; at < nb;) {
            std::size_t in_file = (from + at) % bytes_of_file;
            std::size_t len = std::min(nb - at, bytes_of_file - in_file);
            int file = open_file((from + at) / bytes_of_file);
            if (file == FAILED || !each(file, at, len, static_cast<off_t>(in_file)))
                return -1;
            at += len;
        }
        return static_cast<ssize_t>(nb);
    }

    /* Opened for direct I/O, if the file system has it. */
    int open_file(std::size_t number)
    {
        std::lock_guard<std::mutex> locked(opening);
        int &file = files[number];
        if (file >= 0)
            return file;
        std::string name = root + "/" + std::to_string(number);
        int flags = O_CLOEXEC | (read_only ? O_RDONLY : O_RDWR | O_CREAT);
        int opened = ::open(name.c_str(), flags | O_DIRECT, S_IRUSR | S_IWUSR);
        if (opened == -1 && errno == EINVAL)
            opened = ::open(name.c_str(), flags, S_IRUSR | S_IWUSR);
        if (opened == -1)
            return read_only && errno == ENOENT ? MISSING : FAILED;
        /* A full disk is found now, not when pages have to go. */
        if (!read_only &&
            ::posix_fallocate(opened, 0, static_cast<off_t>(bytes_of_file)) != 0) {
            ::close(opened);
            return FAILED;
        }
        return file = opened;
    }

    std::string root;
    bool read_only;
    std::size_t bytes_of_file;
    std::size_t capacity;
    std::vector<int> files;
    std::mutex opening;
};

} // namespace Umap
#endif

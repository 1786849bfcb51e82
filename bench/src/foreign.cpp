// What programs in C++ look mappings up with, for `foreign.rs`, which compiles and loads this:
// pervma's interface for C, and a std::map under a lock.
#include <pervma.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <pthread.h>
#include <shared_mutex>

namespace {

struct Vma {
    uintptr_t start, end;
    uint64_t payload;
};

// What is found where nothing is mapped.
constexpr uint64_t HOLE = UINT64_MAX;

void check(pervma_status status)
{
    if (status != PERVMA_OK)
        std::abort();
}

class Space {
public:
    Space() { check(pervma_space_create(nullptr, &space)); }
    ~Space() { check(pervma_space_destroy(space)); }

    void insert(const Vma &vma)
    {
        check(pervma_insert(space, vma.start, vma.end, vma.payload));
    }

    void remove(const Vma &vma)
    {
        check(pervma_remove(space, vma.start, vma.end, nullptr, nullptr));
    }

protected:
    pervma_space *space;
};

// By one call.
class Copied : public Space {
public:
    uint64_t read(uintptr_t addr)
    {
        pervma_vma vma;
        pervma_status status = pervma_lookup(space, addr, &vma);
        if (status == PERVMA_EBUSY)
            status = pervma_lookup_wait(space, addr, &vma);
        return status == PERVMA_OK ? vma.payload : HOLE;
    }
};

// The mapping stays while it is looked at.
class Guarded : public Space {
public:
    uint64_t read(uintptr_t addr)
    {
        pervma_guard guard;
        pervma_status status = pervma_read_begin(space, addr, &guard);
        if (status == PERVMA_EBUSY)
            status = pervma_read_begin_wait(space, addr, &guard);
        if (status != PERVMA_OK)
            return HOLE;
        uint64_t payload = guard.payload;
        pervma_read_end(&guard);
        return payload;
    }
};

class PthreadLock {
public:
    void lock_shared() { pthread_rwlock_rdlock(&lock_); }
    void unlock_shared() { pthread_rwlock_unlock(&lock_); }
    void lock() { pthread_rwlock_wrlock(&lock_); }
    void unlock() { pthread_rwlock_unlock(&lock_); }

private:
    pthread_rwlock_t lock_ = PTHREAD_RWLOCK_INITIALIZER;
};

// By their starts.
template <class Lock> class Tree {
public:
    uint64_t read(uintptr_t addr)
    {
        std::shared_lock<Lock> locked(lock);
        auto behind = vmas.upper_bound(addr);
        if (behind == vmas.begin())
            return HOLE;
        const Vma &vma = std::prev(behind)->second;
        return addr < vma.end ? vma.payload : HOLE;
    }

    void insert(const Vma &vma)
    {
        std::lock_guard<Lock> locked(lock);
        auto behind = vmas.lower_bound(vma.start);
        bool is_free = (behind == vmas.end() || vma.end <= behind->first) &&
                       (behind == vmas.begin() || std::prev(behind)->second.end <= vma.start);
        if (!is_free)
            std::abort();
        vmas.emplace_hint(behind, vma.start, vma);
    }

    void remove(const Vma &vma)
    {
        std::lock_guard<Lock> locked(lock);
        if (vmas.erase(vma.start) != 1)
            std::abort();
    }

private:
    Lock lock;
    std::map<uintptr_t, Vma> vmas;
};

struct Functions {
    void *(*make)(const Vma *vmas, size_t count);
    void (*drop)(void *map);
    // The sum of the payloads, each and HOLE plus one.
    uint64_t (*read_all)(void *map, const uintptr_t *addresses, size_t count);
    // Inserts each, and removes it.
    void (*insert_and_remove)(void *map, const Vma *vmas, size_t count);
};

template <class Map> struct Of {
    static void *make(const Vma *vmas, size_t count)
    {
        Map *map = new Map();
        for (size_t at = 0; at < count; at++)
            map->insert(vmas[at]);
        return map;
    }

    static void drop(void *map) { delete static_cast<Map *>(map); }

    static uint64_t read_all(void *map, const uintptr_t *addresses, size_t count)
    {
        uint64_t sum = 0;
        for (size_t at = 0; at < count; at++)
            sum += static_cast<Map *>(map)->read(addresses[at]) + 1;
        return sum;
    }

    static void insert_and_remove(void *map, const Vma *vmas, size_t count)
    {
        for (size_t at = 0; at < count; at++) {
            static_cast<Map *>(map)->insert(vmas[at]);
            static_cast<Map *>(map)->remove(vmas[at]);
        }
    }

    static constexpr Functions FUNCTIONS = { make, drop, read_all, insert_and_remove };
};

} // namespace

// In the order of `foreign.rs`.
extern "C" const Functions bench_functions[4] = {
    Of<Copied>::FUNCTIONS,
    Of<Guarded>::FUNCTIONS,
    Of<Tree<PthreadLock>>::FUNCTIONS,
    Of<Tree<std::shared_mutex>>::FUNCTIONS,
};

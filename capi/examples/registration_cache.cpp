// A cache of registrations, as RDMA libraries have one: which registered memory covers a buffer?
// A transfer holds the registration that it uses; deregistering waits for those that have it, and
// for no others. Compiles without exceptions.
#include <pervma.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

// What the device knows of memory. A payload is a pointer to one.
struct Registration {
    std::uint32_t key;
    bool is_registered;
};

std::atomic<int> alive{0};

void destroy(void *, std::uint64_t payload)
{
    auto *registration = reinterpret_cast<Registration *>(payload);
    registration->is_registered = false; // here the device would be told
    delete registration;
    alive.fetch_sub(1);
}

void check(pervma_status status, const char *what)
{
    if (status == PERVMA_OK)
        return;
    std::fprintf(stderr, "%s: %s (%s)\n", what, pervma_strerror(status), pervma_last_error());
    std::exit(1);
}

void require(bool holds, const char *what)
{
    if (holds)
        return;
    std::fprintf(stderr, "does not hold: %s\n", what);
    std::exit(1);
}

class Cache {
public:
    Cache()
    {
        pervma_space_options options = {};
        options.granularity = 64;
        options.destroy = destroy;
        options.split = [](void *, std::uint64_t, std::size_t, std::uint64_t *) { return 0; };
        check(pervma_space_create(&options, &space), "create");
    }

    ~Cache() { check(pervma_space_destroy(space), "destroy"); }

    Cache(const Cache &) = delete;
    Cache &operator=(const Cache &) = delete;

    void add(std::uintptr_t start, std::uintptr_t end, std::uint32_t key)
    {
        auto *registration = new Registration{key, true};
        alive.fetch_add(1);
        check(pervma_insert(space, start, end, reinterpret_cast<std::uint64_t>(registration)), "add");
    }

    // Returns when no transfer has it any more.
    pervma_status remove(std::uintptr_t start, std::uintptr_t end)
    {
        return pervma_remove(space, start, end, nullptr, nullptr);
    }

    pervma_space *space = nullptr;
};

// The registration that covers a buffer, held for as long as this lives.
class Held {
public:
    Held(Cache &cache, std::uintptr_t start, std::uintptr_t end)
    {
        const pervma_status status = pervma_read_begin_wait(cache.space, start, &guard);
        covers = status == PERVMA_OK && end <= guard.end;
        is_held = status == PERVMA_OK;
    }

    ~Held()
    {
        if (is_held)
            check(pervma_read_end(&guard), "release");
    }

    Held(const Held &) = delete;
    Held &operator=(const Held &) = delete;

    const Registration &operator*() const
    {
        return *reinterpret_cast<const Registration *>(guard.payload);
    }

    bool covers = false;

private:
    bool is_held = false;
    pervma_guard guard;
};

} // namespace

int main()
{
    constexpr std::uintptr_t base = 0x10000, size = 0x1000;
    constexpr int count = 16;
    {
        Cache cache;
        for (int i = 0; i < count; i++)
            cache.add(base + i * size, base + (i + 1) * size, 100 + i);
        require(Held(cache, base + 10, base + size).covers, "a buffer in one registration");
        require(!Held(cache, base + 10, base + size + 1).covers, "no registration covers two");
        require(!Held(cache, base - 64, base).covers, "no registration there");
        require(cache.remove(base, base + 64) == PERVMA_EPARTLY, "registrations are whole");
        require(cache.remove(base + 64, base + 128) == PERVMA_EPARTLY, "as before");

        // Deregistering waits for a transfer that another thread makes.
        std::atomic<bool> has_it{false}, may_release{false}, released{false};
        std::thread transfer([&] {
            Held held(cache, base, base + 64);
            has_it = true;
            while (!may_release)
                std::this_thread::yield();
            require((*held).is_registered && (*held).key == 100, "it stays while it is held");
            released = true;
        });
        while (!has_it)
            std::this_thread::yield();
        pervma_exclusion *exclusion = nullptr;
        check(pervma_exclude(cache.space, base, base + size, &exclusion), "exclude");
        require(pervma_exclusion_wait(exclusion, 1000000) == PERVMA_ETIMED_OUT, "it is held");
        require(alive == count, "nothing is destroyed");
        may_release = true;
        check(pervma_exclusion_remove(exclusion, nullptr, nullptr), "remove");
        require(released && alive == count - 1, "it has waited, and destroyed one");
        transfer.join();

        // Transfers beside threads that register and deregister.
        std::atomic<bool> over{false};
        std::vector<std::thread> threads;
        for (int i = 0; i < 2; i++)
            threads.emplace_back([&, i] {
                for (unsigned round = 0; !over; round++) {
                    const std::uintptr_t at = base + (2 + (round + i) % (count - 2)) * size;
                    Held held(cache, at, at + 64);
                    if (held.covers)
                        require((*held).is_registered, "what is held is registered");
                }
            });
        for (int round = 0; round < 2000; round++) {
            const std::uintptr_t at = base + (2 + round % (count - 2)) * size;
            require(cache.remove(at, at + size) == PERVMA_OK, "deregister");
            cache.add(at, at + size, 100);
        }
        over = true;
        for (auto &thread : threads)
            thread.join();
    }
    require(alive == 0, "all are destroyed");
    std::puts("ok");
    return 0;
}

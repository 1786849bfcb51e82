// An exception out of a callback: one line, and an abort.
#include "common.h"

int main()
{
    pervma_space *space;
    OK(pervma_space_create(nullptr, &space));
    OK(pervma_insert(space, 4096, 8192, 1));
    try {
        pervma_remove(
            space, 4096, 8192, [](void *, uintptr_t, uintptr_t, uint64_t) { throw 1; }, nullptr);
    } catch (int) {
        puts("it was caught");
    }
    return 0;
}

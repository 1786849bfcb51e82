/*
 * What rustc's instrumentation of copies calls, and the ThreadSanitizer of older compilers does not
 * have under this name: it watches memcpy and its like as they are.
 */
#include <stddef.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

void *__tsan_memcpy(void *to, const void *from, size_t len);
void *__tsan_memmove(void *to, const void *from, size_t len);
void *__tsan_memset(void *to, int byte, size_t len);

#ifdef __cplusplus
}
#endif

void *__tsan_memcpy(void *to, const void *from, size_t len)
{
    return memcpy(to, from, len);
}

void *__tsan_memmove(void *to, const void *from, size_t len)
{
    return memmove(to, from, len);
}

void *__tsan_memset(void *to, int byte, size_t len)
{
    return memset(to, byte, len);
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * pervma: a concurrent address space with a lock in every mapping, and a pager. Linux, 64 bits.
 *
 * This file is made by cbindgen; see capi/README.md and docs/c.md in the repository.
 *
 * OVERVIEW
 *
 *   A space maps disjoint ranges of addresses, each a VMA with a payload: a number of the caller's,
 *   which may be a pointer. Looking an address up takes no lock, and is legal in signal handlers. A
 *   change waits for the readers of the VMAs that it touches, and for no others.
 *
 *     make, end        pervma_space_create, _destroy; pervma_slab_create, _destroy
 *     look up          pervma_lookup (a copy), pervma_read_begin, _end (a guard); in handlers too
 *                      pervma_lookup_wait, pervma_read_begin_wait, pervma_read_begin_shared
 *     find again       pervma_guard_id, pervma_read_begin_id
 *     change           pervma_insert, _insert_merging, _set, _replace, _remove, _update, _change,
 *                      _relocate
 *     several at once  pervma_edit_begin, _begin_timed, _begin_range, _end
 *     with system      pervma_reserve, pervma_commit, pervma_abort; pervma_exclude,
 *     calls between    pervma_exclusion_wait, _remove, _update, _relocate, _abandon
 *     look through     pervma_next, _prev, _for_each, _count, _find_gap
 *     many readers     pervma_reader_register, _read_begin, _lookup, _unregister
 *     fork             pervma_fork_prepare, _parent, _child
 *
 *   A region is memory whose pages are filled when they are touched, from a file, from memory, or by
 *   functions of the caller's:
 *
 *     make, end        pervma_region_map_file, _map_memory, _map_source; pervma_region_destroy
 *     use              pervma_region_memory; pervma_region_read, _write (errors, no signals)
 *     change           pervma_region_discard, _protect, _unmap, _map, _resize, _relocate
 *     keep             pervma_region_write_back, _sync; _prefetch, _pin, pervma_unpin
 *     look at          pervma_region_stats, _write_back_failure; pervma_bound_create, _resident
 *
 *   pervma_umap and what is named after it are for umap/umap.h: LLNL UMap's names for regions.
 *
 * WHAT HOLDS FOR ALL FUNCTIONS
 *
 *   Errors. What returns a pervma_status has done nothing when that is not PERVMA_OK, unless it says
 *   otherwise. pervma_strerror has a text for each code; pervma_last_error says what the last
 *   failure on this thread was about.
 *
 *   Handles are pointers to memory that is never given back. One that was destroyed is told by
 *   PERVMA_EHANDLE, until more than 64 others of its kind were destroyed after it and another is
 *   made in its place. A pointer that never was a handle is undefined. No call on an object may be
 *   under way when it is destroyed.
 *
 *   Pointers are NULL only where that is said, else PERVMA_EINVALID; they are not kept, unless that
 *   is said.
 *
 *   Ranges are from start up to, not including, end, and multiples of the space's granularity.
 *
 *   Threads. Any thread may call any function on any object, but for what belongs to a thread:
 *   guards, edits, exclusions and registered readers. From another, they say PERVMA_ETHREAD.
 *
 *   Signal handlers may call what is said to be safe there, and nothing else. That leaves errno as it
 *   was. One that has interrupted a call of this library returns to it: left by siglongjmp, that call
 *   is never over, and what it was changing stays busy.
 *
 *   Callbacks must return. LEAVING ONE BY longjmp OR BY AN EXCEPTION IS FORBIDDEN. An exception, and
 *   pthread_exit, aborts the process at once, with one line on standard error (built with
 *   panic=abort, with what Rust says). A longjmp does so at the next call of that thread from a frame
 *   as high in the stack as that of the call that was left, or higher.
 *   What they are called under is said with each; where nothing is said, no lock is held.
 *
 *   Panics of the Rust code do not leave it: built with panic=unwind a function returns
 *   PERVMA_EINTERNAL, built with panic=abort the process aborts. So it does when there is no memory
 *   for a handle or for a payload with callbacks, or for a thread's own data.
 *
 * STABILITY
 *
 *   Before 1.0 a new minor version may change everything here, and a patch release does not.
 *   Structures with fields "reserved" grow into them: zero a structure before its fields are set.
 */

#ifndef PERVMA_H
#define PERVMA_H

#include <stddef.h>
#include <stdint.h>

/**
 * What a function returns: PERVMA_OK, or why it has done nothing.
 */
typedef enum pervma_status {
    /**
     * Done. Of a lookup: found.
     */
    PERVMA_OK = 0,
    /**
     * An argument is NULL where it must not be, not aligned for its type, or a value that is not
     * possible there.
     */
    PERVMA_EINVALID = 1,
    /**
     * The handle or guard is not a live one: it was destroyed, ended or never made. A handle that
     * was destroyed long ago can be another object's by now; then this is not seen.
     */
    PERVMA_EHANDLE = 2,
    /**
     * The object belongs to another thread.
     */
    PERVMA_ETHREAD = 3,
    /**
     * The function may wait, and was called in a signal handler (pervma_handler_enter).
     */
    PERVMA_EIN_HANDLER = 4,
    /**
     * The ends of the range are no multiples of the granularity, or of the page size.
     */
    PERVMA_EUNALIGNED = 5,
    /**
     * The range is empty.
     */
    PERVMA_EEMPTY = 6,
    /**
     * The range ends before it starts, or beyond what can be mapped.
     */
    PERVMA_EOVERFLOW = 7,
    /**
     * Nothing is mapped there. Of a lookup: at a moment during the lookup, between two edits.
     */
    PERVMA_ENOT_MAPPED = 8,
    /**
     * The address, or a part of the range, is reserved, with nothing mapped yet.
     */
    PERVMA_ERESERVED = 9,
    /**
     * Something is in the way.
     */
    PERVMA_EOVERLAP = 10,
    /**
     * The range would split a VMA, and the split callback refused.
     */
    PERVMA_EPARTLY = 11,
    /**
     * Another thread is changing this: try again, or use a function that waits.
     */
    PERVMA_EBUSY = 12,
    /**
     * This thread itself is changing this: it would wait for itself.
     */
    PERVMA_EBUSY_OWN = 13,
    /**
     * In an edit: another thread excludes readers from a VMA of the range, and needs an edit to go
     * on. End this edit, and begin one that waits for it (pervma_edit_begin_range).
     */
    PERVMA_EEXCLUDED = 14,
    /**
     * This thread holds a guard in this space: it could wait for itself. End the guard first.
     */
    PERVMA_EGUARD = 15,
    /**
     * The VMA has as many readers as its count can hold (2^29 - 1).
     */
    PERVMA_ELIMIT = 16,
    /**
     * The space was not prepared when this process was forked, and cannot be used here; or the
     * guard was made before the fork.
     */
    PERVMA_EFORKED = 17,
    /**
     * No memory is left.
     */
    PERVMA_ENO_MEMORY = 18,
    /**
     * There is no gap of this kind.
     */
    PERVMA_ENO_GAP = 19,
    /**
     * The object is used by others: guards, readers, exclusions, reservations, pins, regions.
     */
    PERVMA_EIN_USE = 20,
    /**
     * The time is over.
     */
    PERVMA_ETIMED_OUT = 21,
    /**
     * A bug in this library, caught. Objects that the call was given may be unusable; others are
     * not affected. Please report it.
     */
    PERVMA_EINTERNAL = 22,
    /**
     * The source could not deliver bytes, or not take them.
     */
    PERVMA_ESOURCE = 23,
    /**
     * Pages are pinned that would go.
     */
    PERVMA_EPINNED = 24,
    /**
     * The page's protection does not let the access through, or the region is read-only.
     */
    PERVMA_EPROTECTED = 25,
    /**
     * The page cannot be had: the source failed, or there is no memory.
     */
    PERVMA_EUNAVAILABLE = 26,
    /**
     * The bound of resident pages is reached, and none can be given back; or more would be pinned
     * than it lets stay.
     */
    PERVMA_EBOUND = 27,
    /**
     * The kernel refused something, or lacks it: see pervma_last_error.
     */
    PERVMA_ESYSTEM = 28,
    /**
     * A callback has failed, and nothing has changed.
     */
    PERVMA_EGIVEN_UP = 29,
} pervma_status;

/**
 * What accesses a page lets through.
 */
typedef enum pervma_protection {
    /**
     * None.
     */
    PERVMA_PROTECTION_NONE = 0,
    /**
     * Reads.
     */
    PERVMA_PROTECTION_READ = 1,
    /**
     * Reads and writes.
     */
    PERVMA_PROTECTION_READ_WRITE = 2,
    /**
     * Reads and instruction fetches.
     */
    PERVMA_PROTECTION_READ_EXECUTE = 3,
} pervma_protection;

/**
 * A bound of how many bytes may be present, which regions share.
 */
typedef struct pervma_bound pervma_bound;

/**
 * The VMAs that touched a range when it was made: they take no new reader, and nobody else changes
 * them. It holds no lock. Belongs to the thread that made it.
 */
typedef struct pervma_exclusion pervma_exclusion;

/**
 * Pages of a region that are present and stay so.
 */
typedef struct pervma_pin pervma_pin;

/**
 * Memory that is filled from a source when it is touched. Any thread may use it.
 */
typedef struct pervma_region pervma_region;

/**
 * A thread that is registered as a reader of a space: its lookups count in no VMA, so threads that
 * read the same VMA do not take turns at a cache line. Changes of the space take longer for it.
 */
typedef struct pervma_reader pervma_reader;

/**
 * A range that is taken, with nothing mapped yet. It holds no lock. Any thread may use it.
 */
typedef struct pervma_reservation pervma_reservation;

/**
 * Memory that spaces share (pervma_space_options.slab).
 */
typedef struct pervma_slab pervma_slab;

/**
 * An address space: disjoint ranges of addresses, each a VMA with a payload and a lock of its own.
 * Any thread may use it.
 */
typedef struct pervma_space pervma_space;

/**
 * Destroys a payload. It is called once for each payload that was handed in, when the last VMA
 * that has it is gone and nobody reads it, on the thread that made it go. No lock is held, but for
 * want of memory.
 */
typedef void (*pervma_destroy_fn)(void *context, uint64_t payload);

/**
 * Splits a VMA `offset` bytes from its start. `*upper` is the payload of the upper part: it is
 * `payload` at first, and may be changed; the lower part keeps `payload`. Non-zero to go on, 0 to
 * refuse (PERVMA_EPARTLY).
 *
 * What it makes may come to nothing, and it may be called again for the same split: a payload that
 * it made is destroyed then. Called with no lock held, but inside an edit of the caller's.
 */
typedef int (*pervma_split_fn)(void *context, uint64_t payload, size_t offset, uint64_t *upper);

/**
 * Merges a VMA of `len` bytes with the one that starts where it ends. `*merged` is the payload of
 * both: it is `payload` at first, and may be changed. Non-zero to merge, 0 to keep them apart.
 *
 * What it makes may come to nothing, and is destroyed then. CALLED UNDER THE LOCK OF THE SPACE,
 * inside an edit: it must be short, and call nothing of this library but lookups.
 */
typedef int (*pervma_merge_fn)(void *context,
                               uint64_t payload,
                               size_t len,
                               uint64_t next,
                               uint64_t *merged);

/**
 * How a space is made. Zero it, then set what is wanted.
 */
typedef struct pervma_space_options {
    /**
     * In bytes, a power of two: the ends of every range are multiples of it. 0: 4096.
     */
    size_t granularity;
    /**
     * The memory that the space shares with others. NULL: memory of its own. It must outlive the
     * space, or pervma_slab_destroy says PERVMA_EIN_USE.
     */
    struct pervma_slab *slab;
    /**
     * NULL: payloads are plain numbers, and need no end.
     */
    pervma_destroy_fn destroy;
    /**
     * NULL: the parts of a split VMA share its payload.
     */
    pervma_split_fn split;
    /**
     * NULL: VMAs with equal payloads merge, where an operation merges.
     */
    pervma_merge_fn merge;
    /**
     * The first argument of the three.
     */
    void *context;
    /**
     * Zero.
     */
    uintptr_t reserved[4];
} pervma_space_options;

/**
 * Told of each VMA that a change has removed or replaced, or of the part that lay in the range, in
 * order of address, when the change is made and no reader has it any more. No lock is held, so it
 * may call this library (inside an edit of the caller's, the edit goes on). The payload is still
 * there; it is destroyed when the callback has returned, unless another VMA shares it.
 */
typedef void (*pervma_removed_fn)(void *context, uintptr_t start, uintptr_t end, uint64_t payload);

/**
 * How one change splits and merges, in place of the space's callbacks; with addresses. A callback
 * that is NULL is the space's.
 */
typedef struct pervma_rules {
    /**
     * Splits the VMA from `start` to `end` at `at`, otherwise as pervma_split_fn.
     */
    int (*split)(void *context,
                 uint64_t payload,
                 uintptr_t start,
                 uintptr_t end,
                 uintptr_t at,
                 uint64_t *upper);
    /**
     * Merges the VMA from `start` to `end` with the one that starts at `end`, otherwise as
     * pervma_merge_fn: UNDER THE LOCK OF THE SPACE.
     */
    int (*merge)(void *context,
                 uint64_t payload,
                 uintptr_t start,
                 uintptr_t end,
                 uint64_t next,
                 uint64_t *merged);
    /**
     * The first argument of both.
     */
    void *context;
} pervma_rules;

/**
 * What becomes of the part from `start` to `end` of a range, in which `*payload` is mapped: it may
 * be changed. Positive: the part is mapped with `*payload`. 0: it is unmapped. Negative: the
 * callback has failed, and the whole change is given up (PERVMA_EGIVEN_UP): nothing has changed,
 * and `*payload` is not looked at.
 *
 * Called with no lock held, but inside an edit of the caller's; perhaps again for the same part,
 * when another thread is in the way. What it makes may come to nothing, and is destroyed then.
 */
typedef int (*pervma_change_fn)(void *context, uintptr_t start, uintptr_t end, uint64_t *payload);

/**
 * What to look for. Zero it, then set what is wanted.
 */
typedef struct pervma_gap {
    /**
     * In bytes, a multiple of the granularity.
     */
    size_t size;
    /**
     * The start is a multiple of it, a power of two. 0: of the granularity.
     */
    size_t align;
    /**
     * All of the gap lies at or above this.
     */
    uintptr_t low;
    /**
     * All of the gap lies below this. 0: no limit.
     */
    uintptr_t high;
    /**
     * Non-zero: the highest, in place of the lowest.
     */
    int top_down;
} pervma_gap;

/**
 * A VMA as it was: copied out.
 */
typedef struct pervma_vma {
    /**
     * Its first address.
     */
    uintptr_t start;
    /**
     * The address behind its last.
     */
    uintptr_t end;
    /**
     * Its payload.
     */
    uint64_t payload;
} pervma_vma;

/**
 * Is shown a VMA. Non-zero to go on, 0 to stop. CALLED UNDER THE LOCK OF THE SPACE (held for
 * reading, or for writing in an edit of the caller's).
 */
typedef int (*pervma_show_fn)(void *context, const struct pervma_vma *vma);

/**
 * A read-locked VMA: until pervma_read_end nobody changes it, and its payload stays. It lies where
 * the caller wants it, on the stack as a rule, and must not be copied or moved: a copy is not a
 * guard. Read the first three fields, and leave the others alone.
 */
typedef struct pervma_guard {
    /**
     * The VMA's first address.
     */
    uintptr_t start;
    /**
     * The address behind its last.
     */
    uintptr_t end;
    /**
     * Its payload.
     */
    uint64_t payload;
    /**
     * Not for use.
     */
    uintptr_t mark;
    /**
     * Not for use.
     */
    uintptr_t thread;
    /**
     * Not for use.
     */
    uintptr_t forks;
    /**
     * Not for use.
     */
    uintptr_t opaque[10];
} pervma_guard;

/**
 * Names one VMA among all that ever were in this process (pervma_guard_id). The same words are the
 * same VMA, and no others are.
 */
typedef struct pervma_vma_id {
    /**
     * Compared only.
     */
    uint64_t words[4];
} pervma_vma_id;

/**
 * An access whose page cannot be had.
 */
typedef struct pervma_failure {
    /**
     * The address that was accessed.
     */
    uintptr_t addr;
    /**
     * Its offset in the region.
     */
    size_t offset;
    /**
     * The interrupted thread's ucontext_t, which may be changed to have it go on elsewhere.
     */
    void *ucontext;
} pervma_failure;

/**
 * Is called when a page cannot be had, on the thread that made the access, IN A SIGNAL HANDLER in
 * which all signals are blocked: async-signal-safe, and no access to a region. It may leave by
 * siglongjmp, if no frame between has a destructor to run. Non-zero: the thread goes on, as its
 * ucontext_t says. 0: the signal goes to the handler that was there before.
 */
typedef int (*pervma_failure_fn)(void *context, const struct pervma_failure *failure);

/**
 * Is told when pages from offset `start` to `end` had to go to keep a bound, and could not be
 * written to the source. They stay. Called on a thread of the region, with nothing locked. It must
 * not destroy the region.
 */
typedef void (*pervma_write_back_failure_fn)(void *context,
                                             size_t start,
                                             size_t end,
                                             const char *reason);

/**
 * How a region is mapped. Zero it, then set what is wanted.
 */
typedef struct pervma_region_options {
    /**
     * A fault fills the aligned part of so many bytes that it is in. A power of two. 0: a page.
     */
    size_t granule;
    /**
     * Addresses are reserved for so many bytes, so that the region can grow in its place.
     */
    size_t capacity;
    /**
     * At most so many bytes are present at a time, at least four granules. 0: no bound.
     */
    size_t resident;
    /**
     * In place of `resident`: a bound that regions share. NULL: none.
     */
    struct pervma_bound *bound;
    /**
     * 0: signal mode: the thread that faults serves the fault, in a handler of SIGBUS; a system
     * call that touches a missing page fails with EFAULT; the functions of a source must be
     * async-signal-safe. Else thread mode: so many threads of the region serve faults, from Linux
     * 6.6 on.
     */
    size_t handler_threads;
    /**
     * Non-zero: it can be written, and knows what was.
     */
    int writable;
    /**
     * Non-zero: pages of 2 MiB, of hugetlbfs.
     */
    int huge_pages;
    /**
     * NULL: see `exit_message`.
     */
    pervma_failure_fn on_failure;
    /**
     * The first argument of `on_failure`.
     */
    void *failure_context;
    /**
     * Without `on_failure`: the process writes this to standard error and exits with `exit_code`
     * when a page cannot be had. Copied, and the copy kept. NULL: the signal goes to the handler
     * that was there before.
     */
    const char *exit_message;
    /**
     * See `exit_message`.
     */
    int exit_code;
    /**
     * NULL: nobody is told; pervma_region_write_back_failure keeps the last.
     */
    pervma_write_back_failure_fn on_write_back_failure;
    /**
     * The first argument of `on_write_back_failure`.
     */
    void *write_back_context;
    /**
     * Zero.
     */
    uintptr_t reserved[4];
} pervma_region_options;

/**
 * Where the bytes of a region come from. Its functions are called by several threads at once, must
 * not touch the region (calls on it are PERVMA_EBUSY_OWN), and must return. In signal mode `read`
 * is async-signal-safe, and uses little stack (3 KiB).
 */
typedef struct pervma_source {
    /**
     * In bytes.
     */
    uint64_t size;
    /**
     * Fills `buffer`, which is all zeros, with `len` bytes from `offset` on. 0 when it has, else
     * they cannot be had. Not NULL.
     */
    int (*read)(void *context, uint64_t offset, void *buffer, size_t len);
    /**
     * Takes `len` bytes that belong at `offset`. 0 when it has. Never called in a signal handler.
     * NULL: the source cannot be written.
     */
    int (*write)(void *context, uint64_t offset, const void *bytes, size_t len);
    /**
     * Makes durable what was written. 0 when it has. NULL: `write` does.
     */
    int (*sync)(void *context);
    /**
     * Called when the region is gone, and nothing else is called any more. May be NULL.
     */
    void (*destroy)(void *context);
    /**
     * The first argument of all.
     */
    void *context;
} pervma_source;

/**
 * What has been counted of a region.
 */
typedef struct pervma_region_counts {
    /**
     * Faults that were served.
     */
    uint64_t faults;
    /**
     * Pages that were filled.
     */
    uint64_t pages;
    /**
     * Pages that were given back.
     */
    uint64_t given_back;
    /**
     * Pages that were written to the source.
     */
    uint64_t written_back;
    /**
     * Faults that ended in a failure.
     */
    uint64_t failures;
    /**
     * Attempts to write pages back that failed, to keep a bound.
     */
    uint64_t write_back_failures;
    /**
     * Bytes that are present now.
     */
    uint64_t resident;
} pervma_region_counts;

/**
 * UMap's settings, as its environment variables say.
 */
typedef struct pervma_umap_settings {
    /**
     * UMAP_PAGESIZE: in bytes, a multiple of 4096. By default 4096.
     */
    uint64_t page_size;
    /**
     * UMAP_BUFSIZE: how many such pages of all regions are present at most, at least 4. By default
     * nine tenths of the memory that is free when this is first asked for.
     */
    uint64_t buffer_pages;
    /**
     * UMAP_PAGE_FILLERS: threads that serve faults, of all regions. By default as many as CPUs.
     */
    uint64_t fillers;
    /**
     * UMAP_PAGE_EVICTORS: by default as many as CPUs. Of no effect: one thread gives back pages,
     * another writes them.
     */
    uint64_t evictors;
    /**
     * UMAP_EVICT_HIGH_WATER_THRESHOLD: pages begin to go when so many per cent of the buffer are
     * present. By default 90.
     */
    uint64_t high_water;
    /**
     * UMAP_EVICT_LOW_WATER_THRESHOLD: and go until so many are. By default 70.
     */
    uint64_t low_water;
    /**
     * UMAP_MAX_FAULT_EVENTS: by default 256. Of no effect.
     */
    uint64_t max_fault_events;
    /**
     * UMAP_READ_AHEAD: by default 0. Of no effect.
     */
    uint64_t read_ahead;
    /**
     * PERVMA_UMAP_MODE: 0 of `thread`, the default; non-zero of `signal`.
     */
    uint64_t is_in_signal;
} pervma_umap_settings;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The text of a code, in a few words. A constant; of an unknown code too.
 *
 * Safe in signal handlers.
 */
const char *pervma_strerror(int32_t status);

/**
 * What the last function that failed on this thread has said of it: addresses, sizes, reasons of
 * the kernel. Lookups say nothing here, but for what is wrong with their arguments. Valid until
 * the next call on this thread. Empty if nothing has failed.
 *
 * Not for signal handlers.
 */
const char *pervma_last_error(void);

/**
 * Makes a slab, for spaces that share memory. What one space frees is used again by another.
 *
 * @param out  receives the slab; destroyed by pervma_slab_destroy
 * @return PERVMA_OK; PERVMA_EBUSY_OWN, _EIN_HANDLER, _EINVALID. Aborts when no memory is left.
 */
enum pervma_status pervma_slab_create(struct pervma_slab **out);

/**
 * Destroys a slab.
 *
 * @return PERVMA_OK; PERVMA_EIN_USE when a space has it; PERVMA_EBUSY_OWN, _EIN_HANDLER, _EHANDLE,
 *         _EINVALID
 */
enum pervma_status pervma_slab_destroy(struct pervma_slab *slab);

/**
 * Makes an empty space.
 *
 * @param options  copied; NULL: the defaults
 * @param out      receives the space; destroyed by pervma_space_destroy
 * @return PERVMA_OK; PERVMA_EINVALID when the granularity is no power of two, or something
 *         reserved is not zero; PERVMA_EHANDLE of the slab; PERVMA_EBUSY_OWN, _EIN_HANDLER. Aborts
 *         when no memory is left.
 */
enum pervma_status pervma_space_create(const struct pervma_space_options *options,
                                       struct pervma_space **out);

/**
 * Destroys a space. Everything is unmapped first, and each payload destroyed. No other call on the
 * space may be under way or follow; one that follows is PERVMA_EHANDLE, as long as few other
 * spaces were destroyed since.
 *
 * @return PERVMA_OK; PERVMA_EIN_USE when a guard of it is held by any thread, or a registered
 *         reader, an exclusion or a reservation of it is left, and then nothing has changed;
 *         PERVMA_EBUSY_OWN in an edit of this thread; PERVMA_EGUARD when this thread has a guard;
 *         PERVMA_EIN_HANDLER, PERVMA_EHANDLE, PERVMA_EINVALID
 */
enum pervma_status pervma_space_destroy(struct pervma_space *space);

/**
 * How many VMAs there are, those of an edit that is under way included. 0 for a handle that is not
 * a live one.
 *
 * Takes no lock; safe in signal handlers.
 */
size_t pervma_count(const struct pervma_space *space);

/**
 * Begins an edit: waits until no other thread edits the space. Until pervma_edit_end, calls of
 * this thread on the space are part of the edit; other threads see all of it at once, at its end.
 * Threads that read what it does not touch go on; what changes a VMA waits for its readers, with
 * the edit open. Outside of an edit each change is an edit of its own, and waits before it.
 *
 * Like a mutex, it belongs to the thread, and does not nest.
 *
 * @return PERVMA_OK; PERVMA_EBUSY_OWN when this thread edits the space; PERVMA_EGUARD when it has
 *         a guard in it; PERVMA_EFORKED, PERVMA_EIN_HANDLER, PERVMA_EHANDLE, PERVMA_EINVALID
 */
enum pervma_status pervma_edit_begin(struct pervma_space *space);

/**
 * As pervma_edit_begin, and waits for a limited time. Changes of the edit wait for readers as long
 * as it takes.
 *
 * @param timeout_ns  at most so long; 0: tries once
 * @return as pervma_edit_begin; PERVMA_ETIMED_OUT
 */
enum pervma_status pervma_edit_begin_timed(struct pervma_space *space, uint64_t timeout_ns);

/**
 * As pervma_edit_begin_timed, and waits until no other thread excludes a VMA that touches a range:
 * no change of this range is refused with PERVMA_EEXCLUDED then. Waits for no reader.
 *
 * @param timeout_ns  at most so long; 0: tries once; UINT64_MAX: as long as it takes
 * @return as pervma_edit_begin; PERVMA_ETIMED_OUT; PERVMA_EBUSY_OWN when this thread has an
 *         exclusion in the space; of the range PERVMA_EUNALIGNED, _EEMPTY, _EOVERFLOW
 */
enum pervma_status pervma_edit_begin_range(struct pervma_space *space,
                                           uintptr_t start,
                                           uintptr_t end,
                                           uint64_t timeout_ns);

/**
 * Ends the edit of this thread: what it has changed is seen by all, and no lock is held any more.
 * Payloads that it has split or merged away are destroyed then.
 *
 * @return PERVMA_OK; PERVMA_ETHREAD when this thread has no edit of the space open;
 *         PERVMA_EBUSY_OWN in a callback of that edit; PERVMA_EHANDLE, PERVMA_EINVALID
 */
enum pervma_status pervma_edit_end(struct pervma_space *space);

/**
 * Maps a range, if nothing is there. Merges nothing.
 *
 * @param payload  the space's from now on; the caller's if the call fails
 * @return PERVMA_OK; PERVMA_EOVERLAP; of the range PERVMA_EUNALIGNED, _EEMPTY, _EOVERFLOW; in an
 *         edit PERVMA_EEXCLUDED; PERVMA_EGUARD, _EBUSY_OWN, _ENO_MEMORY, _EFORKED, _EIN_HANDLER,
 *         _EHANDLE, _EINVALID
 */
enum pervma_status pervma_insert(struct pervma_space *space,
                                 uintptr_t start,
                                 uintptr_t end,
                                 uint64_t payload);

/**
 * As pervma_insert, and merges the VMA with those that touch it (pervma_merge_fn). One that has
 * readers stays as it is.
 */
enum pervma_status pervma_insert_merging(struct pervma_space *space,
                                         uintptr_t start,
                                         uintptr_t end,
                                         uint64_t payload);

/**
 * Maps a range in the place of whatever is mapped there, and merges the VMA with those that touch
 * it, as far as pervma_merge_fn agrees and they have no readers: MAP_FIXED for attributes. Waits
 * for readers of what it replaces.
 *
 * @param on_removed  told of what was there; may be NULL
 * @return as pervma_insert, but for PERVMA_EOVERLAP, which is of reservations only; PERVMA_EPARTLY
 */
enum pervma_status pervma_set(struct pervma_space *space,
                              uintptr_t start,
                              uintptr_t end,
                              uint64_t payload,
                              pervma_removed_fn on_removed,
                              void *context);

/**
 * As pervma_set, and merges nothing: the new VMA is the range, and no other's identity goes on.
 */
enum pervma_status pervma_replace(struct pervma_space *space,
                                  uintptr_t start,
                                  uintptr_t end,
                                  uint64_t payload,
                                  pervma_removed_fn on_removed,
                                  void *context);

/**
 * Unmaps every byte of a range. VMAs that reach beyond it are split (pervma_split_fn). Waits for
 * their readers, and for no others; outside of an edit it holds no lock meanwhile.
 *
 * @param on_removed  told of what was there; may be NULL
 * @return PERVMA_OK; PERVMA_ENOT_MAPPED when nothing is mapped in the range; PERVMA_ERESERVED;
 *         PERVMA_EPARTLY; else as pervma_insert
 */
enum pervma_status pervma_remove(struct pervma_space *space,
                                 uintptr_t start,
                                 uintptr_t end,
                                 pervma_removed_fn on_removed,
                                 void *context);

/**
 * Changes or unmaps every part of a range that is mapped, as `change` says; holes are passed over.
 * VMAs that reach beyond the range are split, and afterwards parts and neighbours are merged, as
 * far as the rules agree and the neighbours have no readers. Waits as pervma_remove does. All of
 * it happens, or nothing.
 *
 * @param rules       how this change splits and merges; NULL: as the space does
 * @param change      called for each part, in order of address; not NULL
 * @param on_removed  told of what was there, changed parts included; may be NULL
 * @param context     the first argument of `change` and `on_removed`
 * @return as pervma_remove; PERVMA_EGIVEN_UP when `change` has failed
 */
enum pervma_status pervma_change(struct pervma_space *space,
                                 uintptr_t start,
                                 uintptr_t end,
                                 const struct pervma_rules *rules,
                                 pervma_change_fn change,
                                 pervma_removed_fn on_removed,
                                 void *context);

/**
 * Moves everything between `start` and `end` so that it starts at `to`, holes included. VMAs that
 * reach beyond the range are split, the moved ones merged with what they touch. Waits as
 * pervma_remove does.
 *
 * @param change      what becomes of the payload of each part, given its new addresses; 0 is taken
 *                    for 1. NULL: it stays
 * @param on_removed  told of what was there, at the old addresses; may be NULL
 * @return as pervma_remove; PERVMA_EOVERLAP when something is where it would move to;
 *         PERVMA_EGIVEN_UP
 */
enum pervma_status pervma_relocate(struct pervma_space *space,
                                   uintptr_t start,
                                   uintptr_t end,
                                   uintptr_t to,
                                   pervma_change_fn change,
                                   pervma_removed_fn on_removed,
                                   void *context);

/**
 * Changes the payload of every part of a range, all of which must be mapped; otherwise as
 * pervma_change with the space's rules. 0 of `change` is taken for 1.
 */
enum pervma_status pervma_update(struct pervma_space *space,
                                 uintptr_t start,
                                 uintptr_t end,
                                 pervma_change_fn change,
                                 pervma_removed_fn on_removed,
                                 void *context);

/**
 * Finds a gap: a range in which nothing is mapped or reserved. Outside of an edit another thread
 * may take it before the call returns: search, and reserve or insert, in one edit.
 *
 * @param out  receives its start
 * @return PERVMA_OK; PERVMA_ENO_GAP; PERVMA_EINVALID when the size or the alignment is impossible;
 *         PERVMA_EGUARD, _EBUSY_OWN, _EFORKED, _EIN_HANDLER, _EHANDLE
 */
enum pervma_status pervma_find_gap(struct pervma_space *space,
                                   const struct pervma_gap *gap,
                                   uintptr_t *out);

/**
 * Copies out the first VMA that ends above `addr`: to go on, ask for its `end`. Waits for a thread
 * that is changing it.
 *
 * @return PERVMA_OK; PERVMA_ENOT_MAPPED when there is none; PERVMA_ELIMIT, _EGUARD, _EBUSY_OWN,
 *         _EFORKED, _EIN_HANDLER, _EHANDLE, _EINVALID
 */
enum pervma_status pervma_next(struct pervma_space *space, uintptr_t addr, struct pervma_vma *out);

/**
 * Copies out the last VMA that starts below `addr`: to go on backwards, ask for its `start`; to
 * begin at the end, for UINTPTR_MAX. Waits until no thread edits.
 *
 * @return as pervma_next
 */
enum pervma_status pervma_prev(struct pervma_space *space, uintptr_t addr, struct pervma_vma *out);

/**
 * Shows the VMAs that overlap a range, all as they are at one moment: in order of address, or
 * backwards. Other threads cannot edit meanwhile; lookups go on.
 *
 * @param backwards  non-zero: the last one first
 * @param show       called for each, UNDER THE LOCK OF THE SPACE; not NULL
 * @return PERVMA_OK, also when `show` has stopped it; PERVMA_EGUARD, _EBUSY_OWN, _EFORKED,
 *         _EIN_HANDLER, _EHANDLE, _EINVALID
 */
enum pervma_status pervma_for_each(struct pervma_space *space,
                                   uintptr_t start,
                                   uintptr_t end,
                                   int backwards,
                                   pervma_show_fn show,
                                   void *context);

/**
 * Finds and read-locks the VMA that holds an address. Never waits, takes no lock, allocates
 * nothing, ends after a bounded number of steps.
 *
 * SAFE IN SIGNAL HANDLERS, also in one that has interrupted a call of this library on its thread.
 * What a handler of SIGSEGV does:
 *
 *   PERVMA_OK           look at the guard, end it, return
 *   PERVMA_ENOT_MAPPED  the fault is the program's: it was a hole
 *   PERVMA_ERESERVED    as that, or what the reservation is for
 *   PERVMA_EBUSY        another thread is changing the place: return, so that the access is made
 *                       again and faults again. Bound that by time, not by number: the other
 *                       thread may hold the range for long
 *   PERVMA_EBUSY_OWN    this thread itself is changing the place, in the code that the signal has
 *                       interrupted: returning to it does not help. Defer the work until that is
 *                       done, or treat it as a bug
 *
 * A VMA that this thread's edit has not locked is found in its handlers too.
 *
 * @param out  receives the guard; unchanged if the call fails
 * @return as above; PERVMA_ELIMIT, _EFORKED, _EHANDLE, _EINVALID
 */
enum pervma_status pervma_read_begin(const struct pervma_space *space,
                                     uintptr_t addr,
                                     struct pervma_guard *out);

/**
 * As pervma_read_begin, and waits for a thread that is changing the place. Not for signal
 * handlers.
 *
 * @return PERVMA_OK, _ENOT_MAPPED, _ERESERVED, _ELIMIT, _EFORKED, _EHANDLE, _EINVALID; where this
 *         thread would wait for itself PERVMA_EBUSY_OWN, _EGUARD; PERVMA_EIN_HANDLER
 */
enum pervma_status pervma_read_begin_wait(const struct pervma_space *space,
                                          uintptr_t addr,
                                          struct pervma_guard *out);

/**
 * As pervma_read_begin_wait, for a guard that any thread may end. It is in no thread's record: a
 * thread that waits for its own is told of nothing, and waits for ever.
 */
enum pervma_status pervma_read_begin_shared(const struct pervma_space *space,
                                            uintptr_t addr,
                                            struct pervma_guard *out);

/**
 * Ends a guard, on the thread that began it, but for those of pervma_read_begin_shared. Wakes a
 * thread that waits for it.
 *
 * SAFE IN SIGNAL HANDLERS, in those that began the guard.
 *
 * @return PERVMA_OK; PERVMA_EHANDLE when it is no live guard: it was ended before, or is a copy;
 *         PERVMA_ETHREAD when it is another thread's; PERVMA_EFORKED when it was begun before this
 *         process was forked; PERVMA_EINVALID. The guard is as it was then.
 */
enum pervma_status pervma_read_end(struct pervma_guard *guard);

/**
 * Names the VMA that a guard has, for pervma_read_begin_id. A name is valid as long as its VMA is
 * mapped, and never given twice: an address does not prove that it is the same VMA. A VMA that is
 * updated keeps its name, and of one that is split the part that has its start; one that is merged
 * into the VMA before it, replaced or moved is gone.
 *
 * SAFE IN SIGNAL HANDLERS.
 *
 * @return PERVMA_OK; PERVMA_EHANDLE when it is no live guard; PERVMA_EINVALID
 */
enum pervma_status pervma_guard_id(const struct pervma_guard *guard, struct pervma_vma_id *out);

/**
 * As pervma_read_begin, of the VMA that was given a name, wherever it ends now.
 *
 * SAFE IN SIGNAL HANDLERS.
 *
 * @return as pervma_read_begin; PERVMA_ENOT_MAPPED when that VMA is gone, whatever is there now
 */
enum pervma_status pervma_read_begin_id(const struct pervma_space *space,
                                        const struct pervma_vma_id *id,
                                        struct pervma_guard *out);

/**
 * Copies out the VMA that holds an address; or of a hole, where it ends. As pervma_read_begin, and
 * the guard ends in the call.
 *
 * SAFE IN SIGNAL HANDLERS; what they do on each code: see pervma_read_begin.
 *
 * @param out  receives the VMA. With PERVMA_ENOT_MAPPED: `start` is `addr`, `end` the start of the
 *             next VMA, UINTPTR_MAX if there is none; parts of that may be reserved. With other
 *             codes unchanged
 * @return as pervma_read_begin, but for PERVMA_ERESERVED: what is reserved is part of a hole.
 *         PERVMA_EBUSY also while the VMA behind a hole is being changed
 */
enum pervma_status pervma_lookup(const struct pervma_space *space,
                                 uintptr_t addr,
                                 struct pervma_vma *out);

/**
 * As pervma_lookup, and waits for a thread that is changing the place. Not for signal handlers. In
 * an edit of this thread it looks at what the edit has made.
 *
 * @return as pervma_read_begin_wait, but for PERVMA_ERESERVED
 */
enum pervma_status pervma_lookup_wait(const struct pervma_space *space,
                                      uintptr_t addr,
                                      struct pervma_vma *out);

/**
 * Registers the running thread as a reader of a space (pervma_reader_read_begin). May wait.
 *
 * @param out  receives the reader, which belongs to this thread; ended by pervma_reader_unregister
 * @return PERVMA_OK; PERVMA_ENO_MEMORY; PERVMA_EBUSY_OWN, _EGUARD, _EFORKED, _EIN_HANDLER,
 *         _EHANDLE, _EINVALID
 */
enum pervma_status pervma_reader_register(struct pervma_space *space, struct pervma_reader **out);

/**
 * Ends a registration, on its thread.
 *
 * @return PERVMA_OK; PERVMA_EIN_USE when it has guards; PERVMA_ETHREAD, _EBUSY_OWN, _EIN_HANDLER,
 *         _EHANDLE, _EINVALID
 */
enum pervma_status pervma_reader_unregister(struct pervma_reader *reader);

/**
 * As pervma_read_begin, by a registered reader, on its thread. SAFE IN SIGNAL HANDLERS: a guard
 * that is begun there must be ended there.
 *
 * @return as pervma_read_begin; PERVMA_ETHREAD
 */
enum pervma_status pervma_reader_read_begin(const struct pervma_reader *reader,
                                            uintptr_t addr,
                                            struct pervma_guard *out);

/**
 * As pervma_lookup, by a registered reader, on its thread. SAFE IN SIGNAL HANDLERS.
 *
 * @return as pervma_lookup; PERVMA_ETHREAD
 */
enum pervma_status pervma_reader_lookup(const struct pervma_reader *reader,
                                        uintptr_t addr,
                                        struct pervma_vma *out);

/**
 * Marks the running thread as being in a signal handler, until pervma_handler_leave: functions
 * that may wait return PERVMA_EIN_HANDLER, in place of a deadlock now and then. Optional. Nests.
 *
 * Safe in signal handlers.
 */
void pervma_handler_enter(void);

/**
 * Ends what pervma_handler_enter has begun. Without that it does nothing.
 *
 * Safe in signal handlers.
 */
void pervma_handler_leave(void);

/**
 * Keeps new readers out of every VMA that touches a range. Waits for exclusions of the same VMAs
 * by others, not for readers.
 *
 * @param out  receives the exclusion; ended by pervma_exclusion_remove, _update, _relocate or
 *             _abandon, on this thread
 * @return PERVMA_OK; PERVMA_ENOT_MAPPED, _ERESERVED, _EUNALIGNED, _EEMPTY, _EOVERFLOW; of an edit,
 *         guard or exclusion of this thread PERVMA_EBUSY_OWN, _EGUARD; PERVMA_ENO_MEMORY,
 *         _EFORKED, _EIN_HANDLER, _EHANDLE, _EINVALID
 */
enum pervma_status pervma_exclude(struct pervma_space *space,
                                  uintptr_t start,
                                  uintptr_t end,
                                  struct pervma_exclusion **out);

/**
 * Waits until the readers have released the VMAs.
 *
 * @param timeout_ns  at most so long; UINT64_MAX: as long as it takes
 * @return PERVMA_OK; PERVMA_ETIMED_OUT; PERVMA_ETHREAD, _EIN_HANDLER, _EHANDLE, _EINVALID
 */
enum pervma_status pervma_exclusion_wait(struct pervma_exclusion *exclusion, uint64_t timeout_ns);

/**
 * Waits for the readers, and unmaps what of the range the VMAs cover. The exclusion is over, also
 * if that fails, but for PERVMA_ETHREAD, _EIN_HANDLER, _EHANDLE and _EINVALID.
 *
 * @return as pervma_remove; PERVMA_ETHREAD
 */
enum pervma_status pervma_exclusion_remove(struct pervma_exclusion *exclusion,
                                           pervma_removed_fn on_removed,
                                           void *context);

/**
 * Waits for the readers, and changes the payload of every part of the range, all of which must be
 * mapped. The exclusion is over, as by pervma_exclusion_remove.
 *
 * @return as pervma_update; PERVMA_ETHREAD
 */
enum pervma_status pervma_exclusion_update(struct pervma_exclusion *exclusion,
                                           pervma_change_fn change,
                                           pervma_removed_fn on_removed,
                                           void *context);

/**
 * Waits for the readers, and moves everything in the range so that it starts at `to`. The
 * exclusion is over, as by pervma_exclusion_remove.
 *
 * @return as pervma_relocate; PERVMA_ETHREAD
 */
enum pervma_status pervma_exclusion_relocate(struct pervma_exclusion *exclusion,
                                             uintptr_t to,
                                             pervma_change_fn change,
                                             pervma_removed_fn on_removed,
                                             void *context);

/**
 * Ends an exclusion, with nothing changed: readers are admitted again. Waits for no reader.
 *
 * @return PERVMA_OK; PERVMA_ETHREAD, _EBUSY_OWN, _EIN_HANDLER, _EHANDLE, _EINVALID
 */
enum pervma_status pervma_exclusion_abandon(struct pervma_exclusion *exclusion);

/**
 * Takes a range in which nothing is mapped, for example until mmap(2) has returned: it is no gap
 * any more, and nothing can be inserted there. In an edit of this thread, in that: the reservation
 * stays when the edit ends.
 *
 * @param out  receives the reservation; ended by pervma_commit or pervma_abort
 * @return as pervma_insert
 */
enum pervma_status pervma_reserve(struct pervma_space *space,
                                  uintptr_t start,
                                  uintptr_t end,
                                  struct pervma_reservation **out);

/**
 * Maps a reserved range, and ends the reservation. Merges nothing. In an edit of this thread, in
 * that.
 *
 * @param payload  the space's from now on; the caller's if the call fails, and then the
 *                 reservation is what it was
 * @return PERVMA_OK; PERVMA_EGUARD, _EFORKED, _EIN_HANDLER, _EHANDLE, _EINVALID
 */
enum pervma_status pervma_commit(struct pervma_reservation *reservation, uint64_t payload);

/**
 * Gives a reserved range back. Waits for no edit: if another thread edits the space, the range is
 * free when its edit has ended.
 *
 * @return PERVMA_OK; PERVMA_EBUSY_OWN, _EIN_HANDLER, _EHANDLE, _EINVALID
 */
enum pervma_status pervma_abort(struct pervma_reservation *reservation);

/**
 * Prepares all spaces for fork(2), which this thread is going to call: waits for edits and
 * exclusions of other threads, and lets none begin. Readers go on. For pthread_atfork(3):
 *
 *   pthread_atfork(pervma_fork_prepare, pervma_fork_parent, pervma_fork_child);
 *
 * Until then this thread must call nothing that may wait: PERVMA_EBUSY_OWN.
 *
 * A space that cannot be prepared, since this thread edits it, excludes a part of it or holds a
 * guard in it, is abandoned in the child: calls on it say PERVMA_EFORKED. So is one that another
 * thread makes meanwhile. Where no handler of fork calls this, a child must not use the library.
 */
void pervma_fork_prepare(void);

/**
 * Goes on in the parent: the spaces can be changed again. Without pervma_fork_prepare it does
 * nothing, and neither does pervma_fork_child.
 */
void pervma_fork_parent(void);

/**
 * Goes on in the child: prepared spaces are whole, and this thread may use them as it likes, also
 * between fork and exec. Guards that were begun before the fork are over: pervma_read_end of them
 * does nothing but say PERVMA_EFORKED. What other threads had reserved stays reserved, and a space
 * in which they had reservations or registered readers cannot be destroyed (PERVMA_EIN_USE).
 * Regions are the parent's: nothing of them is there, destroying one ends its handle alone, and a
 * child of a process that has some must map none.
 */
void pervma_fork_child(void);

/**
 * Maps a file. The first region of a process installs a handler of SIGBUS.
 *
 * @param fd       open for reading, and for writing if the region is written; duplicated
 * @param offset   the first byte of the file that belongs to the region
 * @param len      so many bytes of it. 0: all up to its end
 * @param options  copied; NULL: the defaults
 * @param out      receives the region; destroyed by pervma_region_destroy
 * @return PERVMA_OK; PERVMA_EINVALID when options do not go together, or the file is none that can
 *         be mapped; PERVMA_ESYSTEM, _ESOURCE, _ENO_MEMORY, _EHANDLE of the bound, _EIN_HANDLER.
 *         pervma_last_error says what to look at
 */
enum pervma_status pervma_region_map_file(int fd,
                                          uint64_t offset,
                                          uint64_t len,
                                          const struct pervma_region_options *options,
                                          struct pervma_region **out);

/**
 * Maps memory of the caller's, which must stay, and stay as it is, until the region is destroyed.
 *
 * @param memory  its first byte
 * @param len     in bytes
 * @return as pervma_region_map_file; PERVMA_EOVERFLOW
 */
enum pervma_status pervma_region_map_memory(const void *memory,
                                            size_t len,
                                            const struct pervma_region_options *options,
                                            struct pervma_region **out);

/**
 * Maps what functions of the caller's read.
 *
 * @param source  copied; its `destroy` is not called if this fails
 * @return as pervma_region_map_file
 */
enum pervma_status pervma_region_map_source(const struct pervma_source *source,
                                            const struct pervma_region_options *options,
                                            struct pervma_region **out);

/**
 * Destroys a region: unmaps its memory, after reads of the source that are under way. What was
 * written and not written back is lost. No other call on it may be under way.
 *
 * @return PERVMA_OK; PERVMA_EIN_USE when it has pins, or a call on it is under way after all;
 *         PERVMA_EBUSY_OWN in a function of its source, or its `on_write_back_failure`;
 *         PERVMA_EIN_HANDLER, _EHANDLE, _EINVALID
 */
enum pervma_status pervma_region_destroy(struct pervma_region *region);

/**
 * The region's first byte; NULL for a handle that is not a live one. The addresses are the
 * region's until it is moved (pervma_region_relocate, or _resize beyond its capacity) or
 * destroyed.
 */
void *pervma_region_memory(const struct pervma_region *region);

/**
 * Its length in bytes; 0 for a handle that is not a live one.
 */
size_t pervma_region_len(const struct pervma_region *region);

/**
 * The size of its pages in bytes, of which ranges are multiples; 0 for a handle that is not a live
 * one.
 */
size_t pervma_region_page_size(const struct pervma_region *region);

/**
 * Non-zero if system calls that touch missing pages are served too: in thread mode, if the kernel
 * grants it.
 */
int pervma_region_serves_system_calls(const struct pervma_region *region);

/**
 * Copies bytes out of a region: an error in place of a signal where a page cannot be had.
 *
 * @param offset  from the start of the region
 * @param done    receives how many bytes came; may be NULL
 * @return PERVMA_OK; PERVMA_ENOT_MAPPED, _EPROTECTED, _EUNAVAILABLE, _EBOUND, _EBUSY_OWN in a
 *         function of its source; PERVMA_EOVERFLOW when the buffer would be longer than any
 *         memory; PERVMA_EIN_HANDLER, _EHANDLE, _EINVALID
 */
enum pervma_status pervma_region_read(const struct pervma_region *region,
                                      size_t offset,
                                      void *buffer,
                                      size_t len,
                                      size_t *done);

/**
 * Copies bytes into a region that is writable, otherwise as pervma_region_read.
 */
enum pervma_status pervma_region_write(struct pervma_region *region,
                                       size_t offset,
                                       const void *bytes,
                                       size_t len,
                                       size_t *done);

/**
 * Gives pages back: the next access to each is filled from the source again. What was written
 * there and not written back is lost. As MADV_DONTNEED.
 *
 * @param start, end  offsets in the region, whole pages, but for the region's end
 * @return PERVMA_OK; PERVMA_EUNALIGNED when the range is not whole pages in the region;
 *         PERVMA_ENOT_MAPPED, _EPINNED, _EBUSY, _EBUSY_OWN, _ENO_MEMORY, _ESYSTEM, _EIN_HANDLER,
 *         _EHANDLE, _EINVALID
 */
enum pervma_status pervma_region_discard(struct pervma_region *region, size_t start, size_t end);

/**
 * Says what accesses pages let through. What they do not is SIGSEGV. As mprotect.
 *
 * @param protection  a pervma_protection
 * @return as pervma_region_discard; PERVMA_EPROTECTED when the region is not writable
 */
enum pervma_status pervma_region_protect(struct pervma_region *region,
                                         size_t start,
                                         size_t end,
                                         int protection);

/**
 * Unmaps pages: accesses are SIGSEGV from now on. The addresses stay the region's.
 *
 * @return as pervma_region_discard
 */
enum pervma_status pervma_region_unmap(struct pervma_region *region, size_t start, size_t end);

/**
 * Maps pages again that were unmapped.
 *
 * @return as pervma_region_discard; PERVMA_EOVERLAP when some of it is mapped
 */
enum pervma_status pervma_region_map(struct pervma_region *region, size_t start, size_t end);

/**
 * Writes the pages of a range that were written to the source. Threads that write to such a page
 * meanwhile wait.
 *
 * @param bytes  receives how many bytes that were; may be NULL
 * @return as pervma_region_discard; PERVMA_ESOURCE when the source fails, PERVMA_EPROTECTED
 */
enum pervma_status pervma_region_write_back(struct pervma_region *region,
                                            size_t start,
                                            size_t end,
                                            size_t *bytes);

/**
 * As pervma_region_write_back, and waits until all is durable that was written to the range. As
 * msync and fsync.
 */
enum pervma_status pervma_region_sync(struct pervma_region *region,
                                      size_t start,
                                      size_t end,
                                      size_t *bytes);

/**
 * Why pages that had to go to keep a bound could not be written to the source: the last failure,
 * as long as any of them is still to be written. Its text is pervma_last_error.
 *
 * @param start, end  receive the pages, as offsets; may be NULL
 * @return PERVMA_OK when there is none; PERVMA_ESOURCE when there is; PERVMA_EHANDLE, _EINVALID
 */
enum pervma_status pervma_region_write_back_failure(const struct pervma_region *region,
                                                    size_t *start,
                                                    size_t *end);

/**
 * Fills pages before they are touched.
 *
 * @param reached  receives the offset up to which pages are present; may be NULL
 * @return PERVMA_OK, also when a bound has ended it early: see `reached`; as pervma_region_read
 */
enum pervma_status pervma_region_prefetch(struct pervma_region *region,
                                          size_t start,
                                          size_t end,
                                          size_t *reached);

/**
 * Makes pages present, and keeps them so until pervma_unpin: for system calls and devices. Pins
 * count.
 *
 * @param for_writes  non-zero: they may be written, and count as written from now on
 * @param out         receives the pin
 * @return as pervma_region_read; PERVMA_EUNALIGNED; PERVMA_EBOUND when it is more than a bound
 *         lets stay
 */
enum pervma_status pervma_region_pin(struct pervma_region *region,
                                     size_t start,
                                     size_t end,
                                     int for_writes,
                                     struct pervma_pin **out);

/**
 * Ends a pin.
 *
 * @return PERVMA_OK; PERVMA_EBUSY_OWN, _EIN_HANDLER, _EHANDLE, _EINVALID
 */
enum pervma_status pervma_unpin(struct pervma_pin *pin);

/**
 * Makes a region shorter or longer. Beyond its capacity it moves. Other calls on it wait.
 *
 * @return PERVMA_OK; PERVMA_EPINNED when it has pins; PERVMA_EINVALID when the source is shorter,
 *         or the length 0; PERVMA_ESOURCE, _ENO_MEMORY, _ESYSTEM, _EIN_HANDLER, _EHANDLE
 */
enum pervma_status pervma_region_resize(struct pervma_region *region, size_t len);

/**
 * Moves a region to other addresses, with room for `capacity` bytes. Other calls on it wait.
 * Accesses to the old addresses are SIGSEGV.
 *
 * @return as pervma_region_resize
 */
enum pervma_status pervma_region_relocate(struct pervma_region *region, size_t capacity);

/**
 * What has been counted of a region so far.
 *
 * @return PERVMA_OK; PERVMA_EHANDLE, _EINVALID
 */
enum pervma_status pervma_region_stats(const struct pervma_region *region,
                                       struct pervma_region_counts *out);

/**
 * Makes a bound for regions (pervma_region_options.bound).
 *
 * @param bytes      how many may be present, of all regions that have it
 * @param low, high  watermarks: pages begin to go when more than `high` bytes are present, and go
 *                   until `low` are. Both 0: usual ones
 * @param out        receives the bound
 * @return PERVMA_OK; PERVMA_EINVALID when that is too little, or the watermarks are none;
 *         PERVMA_ESYSTEM, _EBUSY_OWN, _EIN_HANDLER
 */
enum pervma_status pervma_bound_create(size_t bytes,
                                       size_t low,
                                       size_t high,
                                       struct pervma_bound **out);

/**
 * The bytes that are present now, of all regions that have a bound; 0 for a handle that is not a
 * live one.
 */
size_t pervma_bound_resident(const struct pervma_bound *bound);

/**
 * Destroys a handle of a bound. Regions that have the bound keep it.
 *
 * @return PERVMA_OK; PERVMA_EIN_HANDLER, _EHANDLE, _EINVALID
 */
enum pervma_status pervma_bound_destroy(struct pervma_bound *bound);

/**
 * Installs the handler of SIGBUS again, after another has taken its place. The first region
 * installs it by itself.
 *
 * @return PERVMA_OK; PERVMA_ESYSTEM
 */
enum pervma_status pervma_install_sigbus(void);

/**
 * Serves a SIGBUS, for a program with a handler of its own, which was installed with SA_SIGINFO
 * and all signals in its mask, and passes on its arguments. Non-zero if it was a region's: return
 * from the handler then. 0: the signal is the program's.
 *
 * SAFE IN SIGNAL HANDLERS; made for them.
 */
int pervma_serve_sigbus(int signal, void *info, void *context);

/**
 * UMap's settings.
 *
 * @return PERVMA_OK; PERVMA_EINVALID when a variable cannot be used: pervma_last_error says which;
 *         PERVMA_EIN_HANDLER
 */
enum pervma_status pervma_umap_settings_get(struct pervma_umap_settings *out);

/**
 * Maps a part of a file: umap.
 *
 * @param addr    where, with MAP_FIXED: what is mapped there is replaced, but for regions of umap.
 *                Else it is not looked at, and the region begins at a multiple of UMap's page,
 *                if that is a power of two
 * @param length  in bytes
 * @param prot    PROT_READ, with or without PROT_WRITE
 * @param flags   MAP_PRIVATE, with or without MAP_FIXED
 * @param fd      open for reading, and for writing if PROT_WRITE is set; duplicated. With
 *                O_DIRECT, pages are read and written past the page cache
 * @param offset  where the part begins in the file, which has all of it
 * @return its first byte; MAP_FAILED with errno, and the reason in pervma_last_error
 */
void *pervma_umap(void *addr, size_t length, int prot, int flags, int fd, int64_t offset);

/**
 * Maps what functions of the caller's read and write: umap_ex with a store. Offsets are from the
 * start of the region.
 *
 * @param source  copied; its `size` is not looked at, and its `destroy` not called if this fails
 * @return as pervma_umap
 */
void *pervma_umap_source(void *addr,
                         size_t length,
                         int prot,
                         int flags,
                         const struct pervma_source *source);

/**
 * Writes what was written in a region to its source, and unmaps it: uunmap. No other thread uses
 * it.
 *
 * @param addr    its first byte
 * @param length  not looked at, as by UMap: the region goes as a whole
 * @return 0; -1 with errno, EINVAL when no region begins there, EIO when it could not be written:
 *         then it stays
 */
int pervma_uunmap(void *addr, size_t length);

/**
 * Writes what was written in all regions to their sources: umap_flush.
 *
 * @return 0; -1 with errno when some of it could not be written
 */
int pervma_umap_flush(void);

/**
 * Fills pages before they are touched, as far as the buffer has room for them: umap_prefetch.
 *
 * @param count  how many there are
 * @param pages  an address in each
 * @return 0; -1 with errno: EINVAL when one is in no region, EIO when it cannot be had
 */
int pervma_umap_prefetch(size_t count, void *const *pages);

/**
 * Fills pages, and keeps them present until the region is unmapped: umap_fetch_and_pin.
 *
 * @param addr  all in one region
 * @param size  in bytes
 * @return 0; -1 with errno: ENOMEM when it is more than the buffer lets stay (three quarters)
 */
int pervma_umap_fetch_and_pin(void *addr, uint64_t size);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PERVMA_H */

/* Each function of a space does what the header says. */
#include "common.h"

#include <pthread.h>
#include <string.h>

enum { PAGE = 4096 };

static uintptr_t at(int page)
{
    return (uintptr_t)page * PAGE;
}

/* What callbacks were told, as text. */
static char told[1024];

static void tell(const char *what, uintptr_t a, uintptr_t b, uint64_t payload)
{
    size_t len = strlen(told);
    snprintf(told + len, sizeof told - len, "%s %d-%d=%d;", what, (int)(a / PAGE), (int)(b / PAGE),
             (int)payload);
}

#define TOLD(text)                                                                                 \
    do {                                                                                           \
        if (strcmp(told, text) != 0) {                                                             \
            fprintf(stderr, "%s:%d: told \"%s\"\n", __FILE__, __LINE__, told);                     \
            exit(1);                                                                               \
        }                                                                                          \
        told[0] = 0;                                                                               \
    } while (0)

static void removed(void *context, uintptr_t start, uintptr_t end, uint64_t payload)
{
    (void)context;
    tell("removed", start, end, payload);
}

static int show(void *context, const pervma_vma *vma)
{
    int *left = context;
    tell("", vma->start, vma->end, vma->payload);
    return left == NULL || --*left != 0;
}

static void show_all(pervma_space *space)
{
    OK(pervma_for_each(space, 0, UINTPTR_MAX, 0, show, NULL));
}

static int plus_ten(void *context, uintptr_t start, uintptr_t end, uint64_t *payload)
{
    (void)context;
    (void)start;
    (void)end;
    *payload += 10;
    return 1;
}

static int unmap_odd(void *context, uintptr_t start, uintptr_t end, uint64_t *payload)
{
    (void)context;
    tell("part", start, end, *payload);
    return *payload % 2 == 0;
}

static void numbers(void)
{
    pervma_space *space;
    pervma_space_options options = { 0 };
    pervma_vma vma;
    OK(pervma_space_create(&options, &space));

    OK(pervma_insert(space, at(1), at(4), 1));
    GIVES(PERVMA_EOVERLAP, pervma_insert(space, at(3), at(5), 2));
    REQUIRE(strstr(pervma_last_error(), "0x1000..0x4000") != NULL);
    OK(pervma_insert_merging(space, at(4), at(6), 1));
    OK(pervma_insert(space, at(6), at(7), 1));
    show_all(space);
    TOLD(" 1-6=1; 6-7=1;");
    REQUIRE(pervma_count(space) == 2);

    OK(pervma_set(space, at(2), at(3), 2, removed, NULL));
    TOLD("removed 2-3=1;");
    OK(pervma_set(space, at(2), at(3), 1, removed, NULL));
    TOLD("removed 2-3=2;");
    show_all(space); /* equal neighbours have merged, if the change touched them */
    TOLD(" 1-6=1; 6-7=1;");
    OK(pervma_replace(space, at(5), at(8), 1, removed, NULL));
    TOLD("removed 5-6=1;removed 6-7=1;");
    show_all(space);
    TOLD(" 1-5=1; 5-8=1;");

    OK(pervma_remove(space, at(2), at(3), removed, NULL));
    TOLD("removed 2-3=1;");
    GIVES(PERVMA_ENOT_MAPPED, pervma_remove(space, at(2), at(3), removed, NULL));
    GIVES(PERVMA_ENOT_MAPPED, pervma_update(space, at(1), at(4), plus_ten, removed, NULL));
    OK(pervma_update(space, at(4), at(6), plus_ten, removed, NULL));
    TOLD("removed 4-5=1;removed 5-6=1;");
    show_all(space);
    TOLD(" 1-2=1; 3-4=1; 4-6=11; 6-8=1;");
    OK(pervma_set(space, at(3), at(4), 2, NULL, NULL));
    OK(pervma_change(space, at(0), at(7), NULL, unmap_odd, removed, NULL));
    TOLD("part 1-2=1;part 3-4=2;part 4-6=11;part 6-7=1;"
         "removed 1-2=1;removed 3-4=2;removed 4-6=11;removed 6-7=1;");
    show_all(space);
    TOLD(" 3-4=2; 7-8=1;");

    OK(pervma_relocate(space, at(3), at(8), at(20), plus_ten, removed, NULL));
    TOLD("removed 3-4=2;removed 7-8=1;");
    OK(pervma_insert(space, at(40), at(41), 5));
    GIVES(PERVMA_EOVERLAP, pervma_relocate(space, at(20), at(25), at(38), NULL, NULL, NULL));
    OK(pervma_relocate(space, at(20), at(21), at(19), NULL, NULL, NULL));
    show_all(space);
    TOLD(" 19-20=12; 24-25=11; 40-41=5;");

    /* Looking through. */
    uintptr_t from = 0;
    while (pervma_next(space, from, &vma) == PERVMA_OK) {
        tell("next", vma.start, vma.end, vma.payload);
        from = vma.end;
    }
    TOLD("next 19-20=12;next 24-25=11;next 40-41=5;");
    from = UINTPTR_MAX;
    while (pervma_prev(space, from, &vma) == PERVMA_OK) {
        tell("prev", vma.start, vma.end, vma.payload);
        from = vma.start;
    }
    TOLD("prev 40-41=5;prev 24-25=11;prev 19-20=12;");
    int two = 2;
    OK(pervma_for_each(space, at(20), at(50), 1, show, &two));
    TOLD(" 40-41=5; 24-25=11;");

    /* Lookups. */
    OK(pervma_lookup(space, at(24) + 5, &vma));
    REQUIRE(vma.start == at(24) && vma.end == at(25) && vma.payload == 11);
    GIVES(PERVMA_ENOT_MAPPED, pervma_lookup(space, at(25), &vma));
    REQUIRE(vma.start == at(25) && vma.end == at(40));
    GIVES(PERVMA_ENOT_MAPPED, pervma_lookup_wait(space, at(41), &vma));
    REQUIRE(vma.end == UINTPTR_MAX);
    pervma_guard guard;
    OK(pervma_read_begin(space, at(19), &guard));
    REQUIRE(guard.start == at(19) && guard.end == at(20) && guard.payload == 12);
    OK(pervma_read_end(&guard));
    OK(pervma_read_begin_wait(space, at(19), &guard));
    OK(pervma_read_end(&guard));
    GIVES(PERVMA_ENOT_MAPPED, pervma_read_begin_wait(space, at(18), &guard));

    /* Gaps. */
    pervma_gap gap = { 0 };
    uintptr_t found;
    gap.size = 4 * PAGE;
    gap.low = at(18);
    OK(pervma_find_gap(space, &gap, &found));
    REQUIRE(found == at(20));
    gap.align = 8 * PAGE;
    OK(pervma_find_gap(space, &gap, &found));
    REQUIRE(found == at(32));
    gap.align = 0;
    gap.high = at(40);
    gap.top_down = 1;
    OK(pervma_find_gap(space, &gap, &found));
    REQUIRE(found == at(36));
    gap.size = 16 * PAGE;
    GIVES(PERVMA_ENO_GAP, pervma_find_gap(space, &gap, &found));
    OK(pervma_space_destroy(space));
}

static void identities(void)
{
    pervma_space *space;
    pervma_guard guard;
    pervma_vma_id id, other, none = { { 0, 0, 0, 0 } };
    OK(pervma_space_create(NULL, &space));
    OK(pervma_insert(space, at(1), at(4), 1));
    OK(pervma_read_begin(space, at(2), &guard));
    OK(pervma_guard_id(&guard, &id));
    OK(pervma_read_end(&guard));
    GIVES(PERVMA_EHANDLE, pervma_guard_id(&guard, &other));

    OK(pervma_update(space, at(2), at(4), plus_ten, NULL, NULL)); /* splits it */
    OK(pervma_read_begin_id(space, &id, &guard));
    REQUIRE(guard.start == at(1) && guard.end == at(2));
    OK(pervma_guard_id(&guard, &other));
    REQUIRE(memcmp(&id, &other, sizeof id) == 0);
    OK(pervma_read_end(&guard));
    OK(pervma_read_begin_shared(space, at(2), &guard));
    OK(pervma_guard_id(&guard, &other));
    REQUIRE(memcmp(&id, &other, sizeof id) != 0);
    OK(pervma_read_end(&guard));

    OK(pervma_replace(space, at(1), at(2), 1, NULL, NULL)); /* another one, at the same place */
    GIVES(PERVMA_ENOT_MAPPED, pervma_read_begin_id(space, &id, &guard));
    GIVES(PERVMA_ENOT_MAPPED, pervma_read_begin_id(space, &none, &guard));
    OK(pervma_space_destroy(space));
}

struct attempt {
    pervma_space *space;
    uintptr_t start;
    pervma_status timed, range;
};

/* With a little patience, while another thread edits or excludes. */
static void *attempt_edits(void *of)
{
    struct attempt *attempt = of;
    attempt->timed = pervma_edit_begin_timed(attempt->space, 1000000);
    if (attempt->timed == PERVMA_OK)
        OK(pervma_edit_end(attempt->space));
    attempt->range =
        pervma_edit_begin_range(attempt->space, attempt->start, attempt->start + PAGE, 1000000);
    if (attempt->range == PERVMA_OK) {
        OK(pervma_remove(attempt->space, attempt->start, attempt->start + PAGE, NULL, NULL));
        OK(pervma_edit_end(attempt->space));
    }
    return NULL;
}

static struct attempt attempted(pervma_space *space, uintptr_t start)
{
    struct attempt attempt = { space, start, PERVMA_OK, PERVMA_OK };
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, attempt_edits, &attempt) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    return attempt;
}

/* Edits that are begun within a time, and beside exclusions. */
static void timed_edits(void)
{
    pervma_space *space;
    pervma_exclusion *exclusion;
    OK(pervma_space_create(NULL, &space));
    OK(pervma_insert(space, at(1), at(2), 1));
    OK(pervma_insert(space, at(4), at(5), 4));

    OK(pervma_edit_begin_timed(space, UINT64_MAX));
    struct attempt during = attempted(space, at(4));
    REQUIRE(during.timed == PERVMA_ETIMED_OUT && during.range == PERVMA_ETIMED_OUT);
    OK(pervma_edit_end(space));

    OK(pervma_exclude(space, at(1), at(2), &exclusion));
    during = attempted(space, at(1));
    REQUIRE(during.timed == PERVMA_OK && during.range == PERVMA_ETIMED_OUT);
    during = attempted(space, at(4));
    REQUIRE(during.timed == PERVMA_OK && during.range == PERVMA_OK);
    GIVES(PERVMA_EBUSY_OWN, pervma_edit_begin_range(space, at(1), at(2), UINT64_MAX));
    OK(pervma_exclusion_abandon(exclusion));

    OK(pervma_edit_begin_range(space, at(1), at(2), UINT64_MAX));
    GIVES(PERVMA_EBUSY_OWN, pervma_edit_begin_timed(space, 0));
    OK(pervma_edit_end(space));
    GIVES(PERVMA_EEMPTY, pervma_edit_begin_range(space, at(1), at(1), 0));
    REQUIRE(pervma_count(space) == 1);
    OK(pervma_space_destroy(space));
}

static void edits(void)
{
    pervma_space *space;
    pervma_vma vma;
    pervma_gap gap = { 0 };
    pervma_reservation *reservation;
    uintptr_t found;
    OK(pervma_space_create(NULL, &space));
    OK(pervma_insert(space, at(1), at(3), 1));

    OK(pervma_edit_begin(space));
    OK(pervma_remove(space, at(1), at(2), removed, NULL));
    TOLD("removed 1-2=1;");
    OK(pervma_insert(space, at(8), at(9), 8));
    OK(pervma_set(space, at(9), at(10), 8, NULL, NULL));
    OK(pervma_update(space, at(9), at(10), plus_ten, NULL, NULL));
    gap.size = PAGE;
    gap.low = at(8);
    OK(pervma_find_gap(space, &gap, &found));
    REQUIRE(found == at(10));
    OK(pervma_reserve(space, found, found + PAGE, &reservation));
    OK(pervma_next(space, at(9), &vma));
    REQUIRE(vma.payload == 18);
    OK(pervma_prev(space, at(8), &vma));
    REQUIRE(vma.payload == 1);
    OK(pervma_lookup_wait(space, at(8), &vma));
    REQUIRE(vma.payload == 8);
    GIVES(PERVMA_ENOT_MAPPED, pervma_lookup_wait(space, at(5), &vma));
    REQUIRE(vma.end == at(8));
    GIVES(PERVMA_EBUSY_OWN, pervma_lookup(space, at(8), &vma)); /* by lookups without the edit */
    show_all(space);
    TOLD(" 2-3=1; 8-9=8; 9-10=18;");
    OK(pervma_edit_end(space));

    OK(pervma_lookup(space, at(8), &vma));
    pervma_guard guard;
    GIVES(PERVMA_ERESERVED, pervma_read_begin(space, at(10), &guard));
    GIVES(PERVMA_EOVERLAP, pervma_insert(space, at(10), at(11), 3));
    OK(pervma_commit(reservation, 30));
    GIVES(PERVMA_EHANDLE, pervma_commit(reservation, 30));
    GIVES(PERVMA_EHANDLE, pervma_abort(reservation));
    OK(pervma_lookup(space, at(10), &vma));
    REQUIRE(vma.payload == 30);
    OK(pervma_reserve(space, at(20), at(21), &reservation));
    GIVES(PERVMA_EIN_USE, pervma_space_destroy(space));
    OK(pervma_abort(reservation));
    OK(pervma_insert(space, at(20), at(21), 20));
    OK(pervma_space_destroy(space));
}

static void exclusions(void)
{
    pervma_space *space;
    pervma_exclusion *exclusion;
    pervma_guard guard;
    OK(pervma_space_create(NULL, &space));
    OK(pervma_insert(space, at(1), at(3), 1));
    GIVES(PERVMA_ENOT_MAPPED, pervma_exclude(space, at(5), at(6), &exclusion));

    OK(pervma_exclude(space, at(1), at(2), &exclusion));
    GIVES(PERVMA_EBUSY_OWN, pervma_read_begin(space, at(2), &guard));
    GIVES(PERVMA_EIN_USE, pervma_space_destroy(space));
    OK(pervma_exclusion_wait(exclusion, UINT64_MAX));
    OK(pervma_exclusion_update(exclusion, plus_ten, removed, NULL));
    TOLD("removed 1-2=1;");
    GIVES(PERVMA_EHANDLE, pervma_exclusion_abandon(exclusion));

    OK(pervma_exclude(space, at(1), at(2), &exclusion));
    OK(pervma_exclusion_relocate(exclusion, at(7), NULL, removed, NULL));
    TOLD("removed 1-2=11;");
    OK(pervma_exclude(space, at(2), at(3), &exclusion));
    OK(pervma_exclusion_abandon(exclusion));
    OK(pervma_read_begin(space, at(2), &guard));
    OK(pervma_read_end(&guard));
    OK(pervma_exclude(space, at(7), at(8), &exclusion));
    OK(pervma_exclusion_remove(exclusion, removed, NULL));
    TOLD("removed 7-8=11;");
    show_all(space);
    TOLD(" 2-3=1;");
    OK(pervma_space_destroy(space));
}

/* Objects, which the space owns. */
static int alive;

static void destroy(void *context, uint64_t payload)
{
    int *object = (int *)(uintptr_t)payload;
    REQUIRE(context == &alive && *object > 0);
    tell("destroyed", 0, 0, *object);
    *object = 0;
    free(object);
    alive--;
}

static uint64_t object(int number)
{
    int *object = malloc(sizeof *object);
    REQUIRE(object != NULL);
    *object = number;
    alive++;
    return (uintptr_t)object;
}

static int number(uint64_t payload)
{
    return *(int *)(uintptr_t)payload;
}

static int split(void *context, uint64_t payload, size_t offset, uint64_t *upper)
{
    REQUIRE(context == &alive);
    if (number(payload) == 99)
        return 0; /* whole */
    *upper = object(number(payload) + (int)(offset / PAGE));
    return 1;
}

static int merge(void *context, uint64_t payload, size_t len, uint64_t next, uint64_t *merged)
{
    REQUIRE(context == &alive && *merged == payload);
    return number(payload) + (int)(len / PAGE) == number(next);
}

static int split_at(void *context, uint64_t payload, uintptr_t start, uintptr_t end, uintptr_t at,
                    uint64_t *upper)
{
    (void)context;
    tell("split", start, end, (uint64_t)number(payload));
    *upper = object(1000 + (int)(at / PAGE));
    return 1;
}

static int keeps(void *context, uintptr_t start, uintptr_t end, uint64_t *payload)
{
    (void)context;
    (void)start;
    (void)end;
    (void)payload;
    return 0;
}

static void objects(void)
{
    pervma_space *space;
    pervma_space_options options = { 0 };
    pervma_vma vma;
    options.destroy = destroy;
    options.context = &alive;
    OK(pervma_space_create(&options, &space));

    /* Without callbacks for it, the parts share: it is destroyed once, when the last has gone. */
    OK(pervma_insert(space, at(1), at(4), object(7)));
    OK(pervma_remove(space, at(2), at(3), NULL, NULL));
    TOLD("");
    OK(pervma_remove(space, at(1), at(2), NULL, NULL));
    TOLD("");
    OK(pervma_remove(space, at(3), at(4), NULL, NULL));
    TOLD("destroyed 0-0=7;");

    /* What is refused stays the caller's. */
    uint64_t refused = object(8);
    OK(pervma_insert(space, at(1), at(4), object(9)));
    GIVES(PERVMA_EOVERLAP, pervma_insert(space, at(1), at(4), refused));
    GIVES(PERVMA_EUNALIGNED, pervma_set(space, 1, at(4), refused, NULL, NULL));
    REQUIRE(number(refused) == 8);
    OK(pervma_set(space, at(0), at(5), refused, NULL, NULL));
    TOLD("destroyed 0-0=9;");
    OK(pervma_space_destroy(space));
    TOLD("destroyed 0-0=8;");
    REQUIRE(alive == 0);

    /* Offsets of a file, with callbacks. */
    options.split = split;
    options.merge = merge;
    OK(pervma_space_create(&options, &space));
    OK(pervma_set(space, at(10), at(20), object(100), NULL, NULL));
    OK(pervma_remove(space, at(12), at(14), NULL, NULL));
    TOLD("destroyed 0-0=102;");
    OK(pervma_lookup(space, at(14), &vma));
    REQUIRE(number(vma.payload) == 104 && pervma_count(space) == 2);
    OK(pervma_set(space, at(12), at(14), object(102), NULL, NULL));
    REQUIRE(pervma_count(space) == 1 && alive == 1);
    told[0] = 0;
    OK(pervma_set(space, at(30), at(32), object(99), NULL, NULL));
    GIVES(PERVMA_EPARTLY, pervma_remove(space, at(31), at(40), NULL, NULL));
    GIVES(PERVMA_EPARTLY, pervma_change(space, at(30), at(31), NULL, keeps, NULL, NULL));
    pervma_rules rules = { split_at, NULL, NULL };
    OK(pervma_change(space, at(30), at(31), &rules, keeps, NULL, NULL));
    OK(pervma_lookup(space, at(31), &vma));
    REQUIRE(number(vma.payload) == 1031);
    TOLD("split 30-32=99;destroyed 0-0=99;");
    OK(pervma_space_destroy(space));
    REQUIRE(alive == 0);
    told[0] = 0;
}

/* Makes a new object for each part, but where it fails: there it leaves something behind. */
static int makes_unless(void *context, uintptr_t start, uintptr_t end, uint64_t *payload)
{
    int fails_at = *(int *)context;
    tell("asked", start, end, (uint64_t)number(*payload));
    if (start % (100 * PAGE) == at(fails_at)) {
        *payload = 12345; /* not looked at */
        return -1;
    }
    *payload = object(number(*payload) + 50);
    return 1;
}

/* A callback fails: the change is given up, and all is as it was. */
static void failures(void)
{
    pervma_space *space;
    pervma_space_options options = { 0 };
    pervma_exclusion *exclusion;
    int fails_at = 4;
    options.destroy = destroy;
    options.context = &alive;
    OK(pervma_space_create(&options, &space));
    OK(pervma_insert(space, at(0), at(4), object(1)));
    OK(pervma_insert(space, at(4), at(6), object(2)));
    OK(pervma_insert(space, at(6), at(9), object(3)));

    for (int form = 0; form < 8; form++) {
        pervma_status status;
        if (form % 2 == 1 && form < 6)
            OK(pervma_edit_begin(space));
        switch (form) {
        case 0:
        case 1:
            status = pervma_change(space, at(2), at(8), NULL, makes_unless, removed, &fails_at);
            break;
        case 2:
        case 3:
            status = pervma_update(space, at(2), at(8), makes_unless, removed, &fails_at);
            break;
        case 4:
        case 5:
            status = pervma_relocate(space, at(2), at(8), at(102), makes_unless, removed,
                                     &fails_at);
            break;
        case 6:
            OK(pervma_exclude(space, at(2), at(8), &exclusion));
            status = pervma_exclusion_update(exclusion, makes_unless, removed, &fails_at);
            break;
        default:
            OK(pervma_exclude(space, at(2), at(8), &exclusion));
            status = pervma_exclusion_relocate(exclusion, at(102), makes_unless, removed,
                                               &fails_at);
            break;
        }
        GIVES(PERVMA_EGIVEN_UP, status);
        REQUIRE(strstr(pervma_last_error(), "given up") != NULL);
        if (form % 2 == 1 && form < 6)
            OK(pervma_edit_end(space));
        REQUIRE(alive == 3 && pervma_count(space) == 3);
        REQUIRE(strstr(told, "removed") == NULL);
        TOLD(form == 4 || form == 5 || form == 7
                 ? "asked 102-104=1;asked 104-106=2;destroyed 0-0=51;"
                 : "asked 2-4=1;asked 4-6=2;destroyed 0-0=51;");
    }
    fails_at = 50;
    OK(pervma_update(space, at(0), at(9), makes_unless, NULL, &fails_at));
    OK(pervma_space_destroy(space));
    REQUIRE(alive == 0);
    told[0] = 0;
}

static void *other_reader(void *argument)
{
    pervma_reader *reader;
    pervma_vma vma;
    pervma_guard guard;
    OK(pervma_reader_register(argument, &reader));
    OK(pervma_reader_lookup(reader, at(1), &vma));
    GIVES(PERVMA_ENOT_MAPPED, pervma_reader_lookup(reader, at(2), &vma));
    OK(pervma_reader_read_begin(reader, at(1), &guard));
    GIVES(PERVMA_EIN_USE, pervma_reader_unregister(reader));
    OK(pervma_read_end(&guard));
    OK(pervma_reader_unregister(reader));
    GIVES(PERVMA_EHANDLE, pervma_reader_lookup(reader, at(1), &vma));
    return NULL;
}

static void *end_guard(void *argument)
{
    OK(pervma_read_end(argument));
    return NULL;
}

static void threads(void)
{
    pervma_slab *slab;
    pervma_space *spaces[2];
    pervma_space_options options = { 0 };
    pervma_guard guard;
    pthread_t thread;
    OK(pervma_slab_create(&slab));
    options.slab = slab;
    for (int i = 0; i < 2; i++)
        OK(pervma_space_create(&options, &spaces[i]));
    GIVES(PERVMA_EIN_USE, pervma_slab_destroy(slab));
    OK(pervma_insert(spaces[1], at(1), at(2), 1));
    REQUIRE(pthread_create(&thread, NULL, other_reader, spaces[1]) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);

    OK(pervma_read_begin_shared(spaces[1], at(1), &guard));
    GIVES(PERVMA_EIN_USE, pervma_space_destroy(spaces[1]));
    REQUIRE(pthread_create(&thread, NULL, end_guard, &guard) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    for (int i = 0; i < 2; i++)
        OK(pervma_space_destroy(spaces[i]));
    OK(pervma_slab_destroy(slab));
    GIVES(PERVMA_EHANDLE, pervma_slab_destroy(slab));
}

int main(void)
{
    numbers();
    identities();
    edits();
    timed_edits();
    exclusions();
    objects();
    failures();
    threads();
    puts("ok");
    return 0;
}

/*
 * A load for a guest under a balloon, and what its kernel says of it. Statically linked.
 *
 *     guest_load SLOT read MIB AT_MIB RATE    read(2)s of random 256 KiB of a part of the disk
 *     guest_load SLOT map MIB AT_MIB RATE     touches random pages of that part, mapped
 *     guest_load SLOT anon MIB RATE           touches random pages of anonymous memory
 *     guest_load SLOT idle MIB                anonymous memory, touched once
 *     guest_load SLOT burst MIB RATE AT_S FOR_S  allocates RATE MiB a second, keeps all for a while
 *     guest_load once MIB AT_MIB              reads a part of the disk once
 *     guest_load look                         prints figures, one "name value" a line
 *
 * RATE is operations in a second, in an open loop: an operation is due at its time whatever became
 * of the one before; what is more than a second late is dropped, but for `burst`. All but `once` and `look` return
 * when they have touched all that they will work on (`burst`: at once) and go on in the background.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DISK "/dev/vda"
#define COUNTS "/tmp/guest_load.counts"
#define MIB (1ul << 20)
#define PAGE 4096ul
#define PIECE (256ul << 10)
#define SLOTS 8
#define SECOND 1000000000ull

/* Shared by all loads and `look`; a lost update costs one operation of one second. */
struct count {
    volatile uint64_t work, slowest_us;
};

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * SECOND + time.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static struct count *counts(void)
{
    int fd = open(COUNTS, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, SLOTS * sizeof(struct count)))
        fail(COUNTS);
    void *found = mmap(NULL, SLOTS * sizeof(struct count), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found == MAP_FAILED)
        fail("mmap");
    return found;
}

static void sleep_until(uint64_t at)
{
    struct timespec time = {at / SECOND, at % SECOND};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL))
        ;
}

static void account(struct count *count, uint64_t begun)
{
    uint64_t took_us = (now() - begun) / 1000;
    count->work++;
    if (took_us > count->slowest_us)
        count->slowest_us = took_us;
}

static char *memory(int fd, size_t bytes, off_t at)
{
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    char *found = mmap(NULL, bytes, PROT_READ | (fd < 0 ? PROT_WRITE : 0), flags, fd, at);
    if (found == MAP_FAILED)
        fail("mmap");
    return found;
}

static void read_once(int fd, size_t bytes, off_t at)
{
    static char piece[PIECE];
    for (size_t done = 0; done < bytes; done += PIECE)
        if (pread(fd, piece, PIECE, at + done) != (ssize_t)PIECE)
            fail("pread");
}

/* Returns in a child; the parent ends when the child says through *ready that it may. */
static void into_background(int *ready)
{
    int pipe_fds[2];
    char byte;
    if (pipe(pipe_fds))
        fail("pipe");
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child) {
        close(pipe_fds[1]);
        exit(read(pipe_fds[0], &byte, 1) != 1);
    }
    setsid();
    close(pipe_fds[0]);
    *ready = pipe_fds[1];
}

static void say_ready(int ready)
{
    if (write(ready, "", 1) != 1)
        fail("write");
    close(ready);
}

/* Works for ever on the disk (fd) or, where fd is -1, on anonymous memory. */
static void work(struct count *count, int ready, int fd, int mapped, size_t bytes, off_t at,
                 uint64_t rate)
{
    static char piece[PIECE];
    size_t unit = mapped ? PAGE : PIECE;
    char *pages = mapped ? memory(fd, bytes, at) : NULL;
    volatile char seen;
    uint64_t random = now() | 1;

    if (fd >= 0)
        read_once(fd, bytes, at);
    for (size_t offset = 0; mapped && offset < bytes; offset += PAGE)
        if (fd < 0)
            pages[offset] = 1;
        else
            seen = pages[offset];
    say_ready(ready);
    for (uint64_t due = now();; due += SECOND / rate) {
        uint64_t begun = now();
        if (begun < due) {
            sleep_until(due);
            begun = now();
        } else if (begun - due > SECOND) {
            due = begun;
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        size_t offset = random % (bytes / unit) * unit;
        if (!mapped && pread(fd, piece, PIECE, at + offset) != (ssize_t)PIECE)
            fail("pread");
        if (mapped && fd < 0)
            pages[offset]++;
        else if (mapped)
            seen = pages[offset];
        account(count, begun);
    }
    (void)seen;
}

static void burst(struct count *count, size_t bytes, uint64_t rate, uint64_t due, unsigned for_s)
{
    char *pages = memory(-1, bytes, 0);
    for (size_t done = 0; done < bytes; done += MIB, due += SECOND / rate) {
        sleep_until(due);
        uint64_t begun = now();
        for (size_t page = 0; page < MIB; page += PAGE)
            pages[done + page] = 1;
        account(count, begun);
    }
    sleep(for_s);
}

/* Prints the lines of a /proc file whose names are wanted: "name value", or "name total=value". */
static void print_lines(const char *path, const char *const *wanted, const char *prefix)
{
    char line[256], name[64];
    FILE *file = fopen(path, "re");
    if (!file)
        return;
    while (fgets(line, sizeof line, file)) {
        const char *value = strstr(line, "total=");
        if (sscanf(line, "%63s", name) != 1)
            continue;
        value = value ? value + strlen("total=") : line + strlen(name);
        for (const char *const *one = wanted; *one; one++)
            if (!strcmp(name, *one))
                printf("%s%s %" PRIu64 "\n", prefix, name, (uint64_t)strtoull(value, NULL, 10));
    }
    fclose(file);
}

static void look(void)
{
    static const char *const vmstat[] = {
        "nr_free_pages",  "workingset_refault_file", "workingset_refault_anon", "oom_kill",
        "pswpin",         "balloon_inflate",         "balloon_deflate",         "pgmajfault",
        "pgscan_direct", NULL};
    static const char *const pressure[] = {"some", "full", NULL};
    static const char *const meminfo[] = {"MemAvailable:", NULL};
    struct count *all = counts();
    uint64_t work = 0, slowest_us = 0, probe_us = 0;

    for (int slot = 0; slot < SLOTS; slot++) {
        printf("work_%d %" PRIu64 "\n", slot, all[slot].work);
        work += all[slot].work;
        if (all[slot].slowest_us > slowest_us)
            slowest_us = all[slot].slowest_us;
        all[slot].slowest_us = 0;
    }
    for (int probe = 0; probe < 5; probe++) {
        uint64_t begun = now();
        char *pages = memory(-1, PIECE, 0);
        for (size_t page = 0; page < PIECE; page += PAGE)
            pages[page] = 1;
        munmap(pages, PIECE);
        uint64_t took_us = (now() - begun) / 1000;
        probe_us = took_us > probe_us ? took_us : probe_us;
    }
    printf("work %" PRIu64 "\nop_us %" PRIu64 "\nprobe_us %" PRIu64 "\n", work, slowest_us, probe_us);
    print_lines("/proc/vmstat", vmstat, "");
    print_lines("/proc/pressure/memory", pressure, "psi_");
    print_lines("/proc/meminfo", meminfo, "");
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "look")) {
        look();
        return 0;
    }
    if (argc < 4)
        return 2;
    const char *what = argv[2];
    int ready, fd = open(DISK, O_RDONLY | O_CLOEXEC), once = !strcmp(argv[1], "once");
    size_t bytes = strtoull(argv[once ? 2 : 3], NULL, 10) * MIB;
    if (once) {
        read_once(fd, bytes, strtoull(argv[3], NULL, 10) * MIB);
        return 0;
    }
    struct count *count = counts() + strtoul(argv[1], NULL, 10) % SLOTS;
    into_background(&ready);
    if (!strcmp(what, "idle")) {
        memset(memory(-1, bytes, 0), 1, bytes);
        say_ready(ready);
        for (;;)
            pause();
    }
    if (!strcmp(what, "burst") && argc == 7) {
        uint64_t at = now() + strtoull(argv[5], NULL, 10) * SECOND;
        say_ready(ready);
        burst(count, bytes, strtoull(argv[4], NULL, 10), at, strtoul(argv[6], NULL, 10));
        return 0;
    }
    if (argc < 5)
        return 2;
    if (!strcmp(what, "anon"))
        work(count, ready, -1, 1, bytes, 0, strtoull(argv[4], NULL, 10));
    if (argc < 6)
        return 2;
    work(count, ready, fd, !strcmp(what, "map"), bytes, strtoull(argv[4], NULL, 10) * MIB,
         strtoull(argv[5], NULL, 10));
}

/*
 * The floor: gives ranges of a shared memory file back to the host, and does nothing else.
 *
 *     reclaim_floor FD BYTES RANGES
 *
 * FD is the inherited file, BYTES its length, RANGES a file of native u64 pairs (offset, length).
 * Prints the elapsed nanoseconds and the CPU nanoseconds of the calls.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static uint64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    size_t bytes = strtoull(argv[2], NULL, 10);
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
    FILE *file = fopen(argv[3], "rb");
    if (memory == MAP_FAILED || !file)
        return 1;
    fseek(file, 0, SEEK_END);
    size_t count = ftell(file) / 16;
    rewind(file);
    uint64_t *ranges = malloc(count * 16 + 1);
    if (fread(ranges, 16, count, file) != count)
        return 1;

    uint64_t elapsed = now(CLOCK_MONOTONIC), used = now(CLOCK_PROCESS_CPUTIME_ID);
    for (size_t i = 0; i < count; i++)
        if (madvise(memory + ranges[2 * i], ranges[2 * i + 1], MADV_REMOVE))
            return 1;
    used = now(CLOCK_PROCESS_CPUTIME_ID) - used;
    elapsed = now(CLOCK_MONOTONIC) - elapsed;
    printf("%llu %llu\n", (unsigned long long)elapsed, (unsigned long long)used);
    return 0;
}

/* A guest for Firecracker: a virtio-mmio balloon driver and nothing else.
 *
 * It runs where no Linux kernel does, needs no interrupts, and does what Linux's driver does with a
 * target, as far as a host can see. Its memory above POOL_START is the pool: pages in use at the
 * bottom, the balloon at the top, free pages between. Each page was written once, so that the host
 * has it to lose.
 *
 * Lines read from the serial port:
 *
 *     use N     has N MiB in use; pages that it lacks it takes back from the balloon, where
 *               DEFLATE_ON_OOM was negotiated, else from nowhere
 *     check     says whether each page in use holds what was written to it
 *     newer     sends statistics in the order of Linux 6.12 and newer from now on
 *     off       ends the VM
 *
 * Lines written: "ready MIB" of pool, "used MIB", "whole" or "lost PAGES".
 *
 * Sources: virtio 1.3, 2.7 (split virtqueues), 4.2.2 (virtio over MMIO), 5.5 (balloon); Linux's
 * Documentation/arch/x86/zero-page.rst (memory map).
 */
#include <stdint.h>

#define MMIO_BASE 0xd0000000ul /* Firecracker's first virtio-mmio device */
#define COM1 0x3f8
#define I8042 0x64
#define PAGE 4096ul
#define PAGES_PER_MIB 256
#define POOL_START 0x800000ul
#define QUEUE_SIZE 8
#define PAGES_PER_BUFFER 256

enum { MAGIC = 0x000, VERSION = 0x004, DEVICE_ID = 0x008, DEVICE_FEATURES = 0x010,
       DEVICE_FEATURES_SEL = 0x014, DRIVER_FEATURES = 0x020, DRIVER_FEATURES_SEL = 0x024,
       QUEUE_SEL = 0x030, QUEUE_NUM = 0x038, QUEUE_READY = 0x044, QUEUE_NOTIFY = 0x050,
       STATUS = 0x070, QUEUE_DESC = 0x080, QUEUE_DRIVER = 0x090, QUEUE_DEVICE = 0x0a0,
       CONFIG_NUM_PAGES = 0x100, CONFIG_ACTUAL = 0x104 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { F_STATS_VQ = 1 << 1, F_DEFLATE_ON_OOM = 1 << 2 };
enum { INFLATEQ, DEFLATEQ, STATSQ, QUEUES };
enum { S_SWAP_IN, S_SWAP_OUT, S_MAJFLT, S_MINFLT, S_MEMFREE, S_MEMTOT, S_AVAIL, S_CACHES,
       S_OOM_KILL = 10 };

struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };
struct queue {
    struct descriptor table[QUEUE_SIZE] __attribute__((aligned(16)));
    struct { uint16_t flags, index, ring[QUEUE_SIZE]; } available __attribute__((aligned(2)));
    struct { uint16_t flags, index; struct { uint32_t id, length; } ring[QUEUE_SIZE]; } used
        __attribute__((aligned(4)));
};
struct statistic { uint16_t tag; uint64_t value; } __attribute__((packed));

static struct queue queues[QUEUES];
static uint32_t pfns[PAGES_PER_BUFFER];
static struct statistic statistics[16];
static uint64_t page_directory[512] __attribute__((aligned(4096)));
static uint32_t features, pool_pages, used_pages, balloon_pages;
static uint64_t minor_faults, sendings;
static int newer_order;

/* --- the processor --- */

static inline void out(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t in(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* x86 stores are seen in their order; a store and a later load need the fence. */
static inline void fence(void) { __asm__ volatile("mfence" : : : "memory"); }

static volatile uint32_t *reg(uint32_t offset) { return (void *)(MMIO_BASE + offset); }

static volatile uint64_t *page(uint32_t number) { return (void *)(POOL_START + number * PAGE); }

/* Firecracker's page tables map the first GiB; this adds the fourth, where its devices are. */
static void map_devices(void)
{
    uint64_t top;
    __asm__ volatile("mov %%cr3, %0" : "=r"(top));
    uint64_t *pointers = (uint64_t *)(*(uint64_t *)(top & ~0xffful) & ~0xffful);
    for (uint64_t i = 0; i < 512; i++)
        page_directory[i] = 0xc0000000ul + (i << 21) + 0x9b; /* present, write, no cache, 2 MiB */
    pointers[3] = (uint64_t)page_directory | 3;
    __asm__ volatile("mov %0, %%cr3" : : "r"(top) : "memory");
}

/* --- the serial port --- */

static void say(const char *word, uint32_t number, int with_number)
{
    char digits[10];
    int count = 0;
    while (*word)
        out(COM1, *word++);
    if (with_number) {
        out(COM1, ' ');
        do
            digits[count++] = '0' + number % 10;
        while (number /= 10);
        while (count)
            out(COM1, digits[--count]);
    }
    out(COM1, '\n');
}

/* --- the balloon --- */

static void set_up_queue(int number)
{
    struct queue *queue = &queues[number];
    uint64_t parts[] = { (uint64_t)queue->table, (uint64_t)&queue->available,
                         (uint64_t)&queue->used };
    *reg(QUEUE_SEL) = number;
    *reg(QUEUE_NUM) = QUEUE_SIZE;
    for (int part = 0; part < 3; part++) {
        *reg(QUEUE_DESC + 0x10 * part) = (uint32_t)parts[part];
        *reg(QUEUE_DESC + 0x10 * part + 4) = (uint32_t)(parts[part] >> 32);
    }
    *reg(QUEUE_READY) = 1;
}

static void set_up_device(void)
{
    *reg(STATUS) = 0;
    *reg(STATUS) = ACKNOWLEDGE;
    *reg(STATUS) = ACKNOWLEDGE | DRIVER;
    *reg(DEVICE_FEATURES_SEL) = 0;
    features = *reg(DEVICE_FEATURES) & (F_STATS_VQ | F_DEFLATE_ON_OOM);
    *reg(DRIVER_FEATURES_SEL) = 0;
    *reg(DRIVER_FEATURES) = features;
    *reg(DRIVER_FEATURES_SEL) = 1;
    *reg(DRIVER_FEATURES) = 1; /* VIRTIO_F_VERSION_1 */
    *reg(STATUS) = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    for (int number = 0; number < (features & F_STATS_VQ ? QUEUES : STATSQ); number++)
        set_up_queue(number);
    *reg(STATUS) = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
}

/* Offers a buffer: the driver has one in each queue at most. */
static void offer(int number, void *buffer, uint32_t length)
{
    struct queue *queue = &queues[number];
    queue->table[0] = (struct descriptor){ (uint64_t)buffer, length, 0, 0 };
    queue->available.ring[queue->available.index % QUEUE_SIZE] = 0;
    fence();
    queue->available.index++;
    fence();
    *reg(QUEUE_NOTIFY) = number;
}

static int is_answered(int number)
{
    struct queue *queue = &queues[number];
    return *(volatile uint16_t *)&queue->used.index == queue->available.index;
}

/* Moves up to a buffer of pages over the balloon's edge, and tells the device of them. */
static uint32_t move(int number, uint32_t pages)
{
    uint32_t count = pages < PAGES_PER_BUFFER ? pages : PAGES_PER_BUFFER;
    uint32_t edge = pool_pages - balloon_pages;
    for (uint32_t i = 0; i < count; i++)
        pfns[i] = POOL_START / PAGE + (number == INFLATEQ ? edge - 1 - i : edge + i);
    offer(number, pfns, count * sizeof pfns[0]);
    while (!is_answered(number))
        __asm__ volatile("pause");
    balloon_pages += number == INFLATEQ ? count : -count;
    *reg(CONFIG_ACTUAL) = balloon_pages;
    return count;
}

static void follow_target(void)
{
    uint32_t target = *reg(CONFIG_NUM_PAGES);
    uint32_t most = pool_pages - used_pages;
    if (target > most)
        target = most; /* "Out of puff": Linux tries again for ever, too. */
    if (target > balloon_pages)
        move(INFLATEQ, target - balloon_pages);
    else if (*reg(CONFIG_NUM_PAGES) < balloon_pages)
        move(DEFLATEQ, balloon_pages - *reg(CONFIG_NUM_PAGES));
}

static void send_statistics(void)
{
    uint64_t free_bytes = (pool_pages - used_pages - balloon_pages) * PAGE;
    int count = 0;
#define SEND(tag, value) statistics[count++] = (struct statistic){ tag, value }
    SEND(S_SWAP_IN, 0);
    SEND(S_SWAP_OUT, 0);
    SEND(S_MAJFLT, 0);
    SEND(S_MINFLT, minor_faults + ++sendings);
    if (newer_order)
        SEND(S_OOM_KILL, 0);
    SEND(S_MEMFREE, free_bytes);
    SEND(S_MEMTOT, pool_pages * PAGE);
    SEND(S_AVAIL, free_bytes);
    SEND(S_CACHES, 0);
    offer(STATSQ, statistics, count * sizeof statistics[0]);
}

/* --- the guest's own needs --- */

static void use(uint32_t pages)
{
    while (pages > pool_pages - balloon_pages && features & F_DEFLATE_ON_OOM)
        move(DEFLATEQ, pages - (pool_pages - balloon_pages));
    if (pages > pool_pages - balloon_pages)
        pages = pool_pages - balloon_pages;
    for (; used_pages < pages; used_pages++, minor_faults++)
        *page(used_pages) = ~(uint64_t)used_pages;
    used_pages = pages;
    say("used", used_pages / PAGES_PER_MIB, 1);
}

static void check(void)
{
    uint32_t lost = 0;
    for (uint32_t number = 0; number < used_pages; number++)
        lost += *page(number) != ~(uint64_t)number;
    say(lost ? "lost" : "whole", lost, lost != 0);
}

static void obey(const char *line)
{
    uint32_t number = 0;
    for (const char *at = line; *at; at++)
        if (*at >= '0' && *at <= '9')
            number = number * 10 + *at - '0';
    switch (line[0]) {
    case 'u':
        use(number * PAGES_PER_MIB);
        break;
    case 'c':
        check();
        break;
    case 'n':
        newer_order = 1;
        break;
    case 'o':
        out(I8042, 0xfe); /* CPU reset: Firecracker ends */
    }
}

static void listen(void)
{
    static char line[32];
    static uint32_t length;
    while (in(COM1 + 5) & 1) { /* line status: data ready */
        char got = in(COM1);
        line[length] = got == '\n' ? 0 : got;
        if (got == '\n')
            obey(line);
        length = got == '\n' || length == sizeof line - 1 ? 0 : length + 1;
    }
}

/* How much memory there is from 1 MiB on, by the memory map in the boot parameters. */
static uint64_t memory_end(const uint8_t *boot_params)
{
    struct region { uint64_t start, size; uint32_t type; } __attribute__((packed));
    const struct region *map = (const void *)(boot_params + 0x2d0);
    uint64_t end = 0;
    for (int i = 0; i < boot_params[0x1e8]; i++)
        if (map[i].type == 1 && map[i].start <= 0x100000 && map[i].start + map[i].size > end)
            end = map[i].start + map[i].size;
    return end;
}

__attribute__((used)) static void run(const uint8_t *boot_params)
{
    pool_pages = (memory_end(boot_params) - POOL_START) / PAGE;
    for (uint32_t number = 0; number < pool_pages; number++)
        *page(number) = 1;
    map_devices();
    if (*reg(MAGIC) != 0x74726976 || *reg(VERSION) != 2 || *reg(DEVICE_ID) != 5) {
        say("no balloon", 0, 0);
        for (;;)
            listen();
    }
    set_up_device();
    say("ready", pool_pages / PAGES_PER_MIB, 1);
    if (features & F_STATS_VQ)
        send_statistics();
    for (;;) {
        follow_target();
        if (features & F_STATS_VQ && is_answered(STATSQ))
            send_statistics();
        listen();
    }
}

__asm__(".section .text.start, \"ax\"\n"
        ".globl _start\n"
        "_start:\n"
        "    mov $stack_top, %rsp\n"
        "    mov %rsi, %rdi\n"
        "    call run\n"
        ".bss\n"
        ".balign 16\n"
        "    .skip 16384\n"
        "stack_top:\n"
        ".text\n");

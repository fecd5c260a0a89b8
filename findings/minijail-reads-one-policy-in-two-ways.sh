#!/usr/bin/env bash
# Packages:  Debian forky: minijail and python3-minijail 2026.05.18+git20261016.8787d1a-2,
#            busybox-static 1:1.38.0-3+b1
# Guess:     a policy file means the same to minijail0, which compiles it as it starts a program, and
#            to compile_seccomp_policy, which compiles it for minijail0 beforehand.
# Behaviour: `CONDITION; return ERROR` is read in opposite ways. minijail0 allows the call where the
#            condition holds and refuses it elsewhere, as its manual says. The compiler in Python
#            refuses it where the condition holds, and leaves the rest to the default. Neither warns.
# Output:    chmod: arg1 == 0600; return EACCES
#            minijail0 -S: mode 600 allowed, mode 640 refused
#            compile_seccomp_policy: mode 600 refused, mode 640 killed
set -eu
box=$(mktemp -d)
trap 'rm -rf "$box"' EXIT
version=2026.05.18+git20261016.8787d1a-2
"$(dirname "$0")/fetch" "$box" forky {minijail,python3-minijail}=$version \
    busybox-static=1:1.38.0-3+b1

# What a static busybox needs, by name and number; octal and the error's name are no constants.
needed=(execve=59 arch_prctl=158 set_tid_address=218 set_robust_list=273 rseq=334 prlimit64=302
    readlinkat=267 getrandom=318 brk=12 mprotect=10 prctl=157 getuid=102 newfstatat=262 write=1
    exit_group=231 getgid=104 setgid=106 setuid=105)
{
    printf '%s: 1\n' "${needed[@]%=*}"
    echo "chmod: arg1 == $((0600)); return 13"
} >"$box/policy"
calls=$(printf '"%s, ' "${needed[@]/=/\": }")
cat >"$box/constants.json" <<EOF
{"arch_nr": $((0xc000003e)), "arch_name": "x86_64", "bits": 64, "constants": {},
 "syscalls": {$calls "chmod": 90}}
EOF
PYTHONHOME=$box/usr "$box/run" python3.14 -I "$box/usr/bin/compile_seccomp_policy" \
    --arch-json "$box/constants.json" "$box/policy" "$box/policy.bpf"

chmod_to() { # chmod_to MODE HOW...: what becomes of that call under the policy
    local mode=$1 status=0
    shift
    touch "$box/file"
    "$box/run" minijail0 -n -T static "$@" -- "$box/usr/bin/busybox" chmod "$mode" "$box/file" \
        2>/dev/null || status=$?
    case $status in
        0) echo "mode $mode allowed" ;;
        1) echo "mode $mode refused" ;;
        253) echo "mode $mode killed" ;; # MINIJAIL_ERR_SECCOMP_VIOLATION
        *) echo "mode $mode: status $status" ;;
    esac
}
both() { # both NAME HOW...
    echo "$1: $(chmod_to 600 "${@:2}"), $(chmod_to 640 "${@:2}")"
}
{
    echo "chmod: arg1 == 0600; return EACCES"
    both "minijail0 -S" -S "$box/policy"
    both "compile_seccomp_policy" --seccomp-bpf-binary "$box/policy.bpf"
} | "$(dirname "$0")/as-stated" "$0"

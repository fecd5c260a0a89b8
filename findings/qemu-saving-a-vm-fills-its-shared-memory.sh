#!/usr/bin/env bash
# Packages:  Debian forky: qemu-system-x86 1:11.1.2+ds-3
# Guess:     saving a VM to a file only reads its memory, so it costs the host none.
# Behaviour: it allocates what was not there. A page of a shared file that was never written, or has
#            been given back (balloon, free page reporting), gets memory when it is read through a
#            mapping; private anonymous memory gets the one page of zeros that all share. So a
#            ballooned VM on a memfd has the host's memory again once it is saved, though the guest
#            has not touched it and the file holds next to nothing: just when a host that runs low
#            may want to save a VM.
# Output:    memory-backend-ram: 512 MiB saved in less than 4 MiB, the VM holds less than 8 MiB
#            memory-backend-memfd,share=on: 512 MiB saved in less than 4 MiB, the VM holds 512 MiB
set -eu
box=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$box"' EXIT
"$(dirname "$0")/fetch" "$box" forky qemu-system-x86=1:11.1.2+ds-3

save() { # save BACKEND: a VM of 512 MiB that only its firmware has run in
    mkfifo "$box/in" "$box/out"
    "$box/run" qemu-system-x86_64 -L "$box/usr/share/qemu" -L "$box/usr/share/seabios" \
        -accel tcg -nodefaults -display none -object "$1,id=memory,size=512M" \
        -machine q35,memory-backend=memory -m 512M -qmp stdio <"$box/in" >"$box/out" &
    exec 3>"$box/in" 4<"$box/out"
    ask qmp_capabilities
    ask stop
    ask migrate "\"uri\": \"file:$box/saved\""
    until [[ $answer == *'"status": "completed"'* ]]; do
        sleep 0.2
        ask query-migrate
    done
    # In MiB; QEMU's own memory is no mapping of this size.
    held=$(awk '/^Size:/ { whole = $2 == 524288 } /^Rss:/ && whole { print int($2 / 1024) }' \
        "/proc/$!/smaps")
    saved=$(($(stat -c %s "$box/saved") >> 20))
    echo "$1: 512 MiB saved in $(about $saved 4), the VM holds $(about "$held" 8)"
    ask quit
    wait $!
    rm "$box/in" "$box/out" "$box/saved"
}
about() { if [ "$1" -lt "$2" ]; then echo "less than $2 MiB"; else echo "$1 MiB"; fi; }
ask() { # ask COMMAND [ARGUMENTS]: sends it, waits for its answer
    echo "{\"execute\": \"$1\", \"arguments\": {${2:-}}}" >&3
    while read -rt 60 answer <&4; do [[ $answer != '{"return"'* ]] || return 0; done
    return 1
}
{
    save memory-backend-ram
    save memory-backend-memfd,share=on
} >"$box/seen"
"$(dirname "$0")/as-stated" "$0" <"$box/seen"

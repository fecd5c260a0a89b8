# Completion of balloonctl for bash.
# Made by python -m balloon_daemon.ctl.completion; change balloonctl instead.

_balloonctl_vms() {
    balloonctl status 2>/dev/null |
        awk 'NR == 1 && $1 != "VM" || NF == 0 { exit } NR > 1 { print $1 }'
}

_balloonctl() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    local command='' kind='' words='' options='' word
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $command/$word in
        /status | /top | /explain | /events | /record | /reload | /release | /set | /pause | /resume | /reclaim | /reserve | /unreserve | /doctor | /demo | /seccomp | /seccomp/check | /seccomp/explain | /seccomp/test | /seccomp/compile | /seccomp/run | /seccomp/trace | /history | /plot | /simulate | /judge | /install-service | /uninstall-service)
            command=$command/$word
            ;;
        esac
    done
    case $command:$before in
    :--api | /status:--api | /top:--api | /explain:--api | /events:--api | /record:--api | /record:-o | /record:--output | /reload:--api | /release:--api | /set:--api | /pause:--api | /resume:--api | /reclaim:--api | /reserve:--api | /unreserve:--api | /doctor:--api | /demo:--plot | /seccomp/compile:-o | /seccomp/compile:--output | /seccomp/trace:-o | /seccomp/trace:--output | /plot:-o | /plot:--output | /plot:--history | /simulate:--plot | /judge:--trace | /judge:--plot)
        kind=files
        ;;
    /top:--every | /record:--for | /set:--for | /pause:--for | /reclaim:--within | /reclaim:--hold | /reserve:--within | /reserve:--for | /doctor:--root | /demo:--vm-mem | /demo:--speed | /seccomp/check:--arch | /seccomp/check:--include-map | /seccomp/explain:--arch | /seccomp/explain:--include-map | /seccomp/test:--arch | /seccomp/test:--include-map | /seccomp/compile:--arch | /seccomp/compile:--include-map | /seccomp/run:--arch | /seccomp/run:--include-map | /history:--since | /plot:--since | /simulate:--set | /simulate:--host-memory | /simulate:--seed | /judge:--recordings | /judge:--drawn | /judge:--seed | /install-service:--root | /uninstall-service:--root)
        kind=text
        ;;
    /reclaim:--from | /history:--vm)
        kind=vms
        ;;
    /seccomp/check:--default | /seccomp/explain:--default | /seccomp/test:--default | /seccomp/compile:--default | /seccomp/run:--default)
        kind=words words='allow kill kill-process kill-thread log trace trap user-notify'
        ;;
    /seccomp/check:--dialect | /seccomp/explain:--dialect | /seccomp/test:--dialect | /seccomp/compile:--dialect | /seccomp/run:--dialect)
        kind=words words='python c'
        ;;
    /seccomp/compile:--format)
        kind=words words='bpf pfc'
        ;;
    /seccomp/run:--from | /seccomp/trace:--from)
        kind=words words='entry exec'
        ;;
    /simulate:--profile)
        kind=words words='seed careful adaptive all'
        ;;
    *)
        case $command in
        '')
            kind=words words='status top explain events record reload release set pause resume reclaim reserve unreserve doctor demo seccomp history plot simulate judge install-service uninstall-service' options='-h --help --version --api'
            ;;
        /status)
            kind=none options='-h --help --api --json'
            ;;
        /top)
            kind=none options='-h --help --api --json --every'
            ;;
        /explain)
            kind=vms options='-h --help --api --json'
            ;;
        /events)
            kind=vms options='-h --help --api --json -f --follow'
            ;;
        /record)
            kind=none options='-h --help --api -o --output --for'
            ;;
        /reload)
            kind=none options='-h --help --api --json'
            ;;
        /release)
            kind=vms options='-h --help --api --json'
            ;;
        /set)
            kind=vms options='-h --help --api --json --for'
            ;;
        /pause)
            kind=vms options='-h --help --api --json --for'
            ;;
        /resume)
            kind=vms options='-h --help --api --json'
            ;;
        /reclaim)
            kind=text options='-h --help --api --json --from --within --hold'
            ;;
        /reserve)
            kind=text options='-h --help --api --json --within --for'
            ;;
        /unreserve)
            kind=none options='-h --help --api --json'
            ;;
        /doctor)
            kind=none options='-h --help --api --root --json'
            ;;
        /demo)
            kind=none options='-h --help --vm-mem --speed --json --plot --plain'
            ;;
        /seccomp)
            kind=words words='check explain test compile run trace' options='-h --help'
            ;;
        /seccomp/check)
            kind=files options='-h --help --arch --default --dialect --include-map --json'
            ;;
        /seccomp/explain)
            kind=files options='-h --help --arch --default --dialect --include-map'
            ;;
        /seccomp/test)
            kind=files options='-h --help --arch --default --dialect --include-map'
            ;;
        /seccomp/compile)
            kind=files options='-h --help --arch --default --dialect --include-map -o --output --format'
            ;;
        /seccomp/run)
            kind=files options='-h --help --arch --default --dialect --include-map --from'
            ;;
        /seccomp/trace)
            kind=text options='-h --help --from -o --output'
            ;;
        /history)
            kind=files options='-h --help --vm --since --samples --json'
            ;;
        /plot)
            kind=vms options='-h --help -o --output --history --since'
            ;;
        /simulate)
            kind=files options='-h --help --set --profile --host-memory --seed --json --plot'
            ;;
        /judge)
            kind=none options='-h --help --recordings --trace --drawn --margins --seed --json --plot'
            ;;
        /install-service)
            kind=none options='-h --help --root --dry-run'
            ;;
        /uninstall-service)
            kind=none options='-h --help --root --dry-run'
            ;;
        esac
        [[ $current != -* ]] || kind=words words=$options
        ;;
    esac
    case $kind in
    files)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        ;;
    vms)
        # Whoever starts a VM chooses its name. compgen -W would run the $(…) in a name, and so
        # would the shell at the end of the line: quote each name, and compare it here.
        while IFS= read -r word; do
            printf -v word %q "$word"
            [[ $word != "$current"* ]] || COMPREPLY+=("$word")
        done < <(_balloonctl_vms)
        ;;
    words)
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
        ;;
    esac
}
complete -F _balloonctl balloonctl

# Completion of balloonctl for fish.
# Made by python -m balloon_daemon.ctl.completion; change balloonctl instead.

function __balloonctl_vms
    balloonctl status 2>/dev/null |
        awk 'NR == 1 && $1 != "VM" || NF == 0 { exit } NR > 1 { print $1 }'
end

# Whether the line's first words are balloonctl and these.
function __balloonctl_at
    set -l words (commandline -opc)
    test "$words[2..]" = "$argv"; and return
    test (count $argv) -gt 0; and string match -q -- "$argv *" "$words[2..]"
end

# Whether these are all words of the line so far.
function __balloonctl_ends
    set -l words (commandline -opc)
    test "$words[2..]" = "$argv"
end

complete -c balloonctl -f
complete -c balloonctl -n '__balloonctl_ends' -a status -d 'the host and all VMs at a glance'
complete -c balloonctl -n '__balloonctl_ends' -a top -d 'the host and all VMs, live'
complete -c balloonctl -n '__balloonctl_ends' -a explain -d 'why a VM has its size'
complete -c balloonctl -n '__balloonctl_ends' -a events -d 'the last events, and those to come'
complete -c balloonctl -n '__balloonctl_ends' -a record -d 'a trace of what the policy is told'
complete -c balloonctl -n '__balloonctl_ends' -a release -d 'give memory back, now'
complete -c balloonctl -n '__balloonctl_ends' -a set -d 'set a VM'\''s balloon for a time'
complete -c balloonctl -n '__balloonctl_ends' -a doctor -d 'why balloons do not help this host, and what to do about it'
complete -c balloonctl -n '__balloonctl_ends' -a demo -d 'a host that runs low, a guest that gives memory back, and a live chart'
complete -c balloonctl -n '__balloonctl_ends' -a seccomp -d 'check, explain, test, compile, run and trace seccomp policy files'
complete -c balloonctl -n '__balloonctl_ends' -a history -d 'what balloond decided in the last day, and what host and VMs had'
complete -c balloonctl -n '__balloonctl_ends' -a plot -d 'a picture of the last day, of one VM or of all'
complete -c balloonctl -n '__balloonctl_ends' -a simulate -d 'what other settings would have done on a recorded host'
complete -c balloonctl -n '__balloonctl_at' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at' -l version -d 'show program'\''s version number and exit'
complete -c balloonctl -n '__balloonctl_at' -l api -rF -d 'the socket of balloond'\''s API (default: /run/balloond/api.sock)'
complete -c balloonctl -n '__balloonctl_at status' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at status' -l api -rF -d 'the socket of balloond'\''s API (default: /run/balloond/api.sock)'
complete -c balloonctl -n '__balloonctl_at status' -l json -d 'as balloond answers: docs/api.md'
complete -c balloonctl -n '__balloonctl_at top' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at top' -l api -rF -d 'the socket of balloond'\''s API (default: /run/balloond/api.sock)'
complete -c balloonctl -n '__balloonctl_at top' -l json -d 'as balloond answers: docs/api.md'
complete -c balloonctl -n '__balloonctl_at top' -l every -x -d 'look so often (default: 1s)'
complete -c balloonctl -n '__balloonctl_at explain' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at explain' -l api -rF -d 'the socket of balloond'\''s API (default: /run/balloond/api.sock)'
complete -c balloonctl -n '__balloonctl_at explain' -l json -d 'as balloond answers: docs/api.md'
complete -c balloonctl -n '__balloonctl_at explain' -a '(__balloonctl_vms)'
complete -c balloonctl -n '__balloonctl_at events' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at events' -l api -rF -d 'the socket of balloond'\''s API (default: /run/balloond/api.sock)'
complete -c balloonctl -n '__balloonctl_at events' -l json -d 'as balloond answers: docs/api.md'
complete -c balloonctl -n '__balloonctl_at events' -s f -l follow -d 'go on with each event as it comes'
complete -c balloonctl -n '__balloonctl_at events' -a '(__balloonctl_vms)'
complete -c balloonctl -n '__balloonctl_at record' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at record' -l api -rF -d 'the socket of balloond'\''s API (default: /run/balloond/api.sock)'
complete -c balloonctl -n '__balloonctl_at record' -s o -l output -rF -d 'the trace'
complete -c balloonctl -n '__balloonctl_at record' -l for -x -d 'how long: 90s, 10m, 2h or 1d'
complete -c balloonctl -n '__balloonctl_at release' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at release' -l api -rF -d 'the socket of balloond'\''s API (default: /run/balloond/api.sock)'
complete -c balloonctl -n '__balloonctl_at release' -l json -d 'as balloond answers: docs/api.md'
complete -c balloonctl -n '__balloonctl_at release' -a '(__balloonctl_vms)'
complete -c balloonctl -n '__balloonctl_at set' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at set' -l api -rF -d 'the socket of balloond'\''s API (default: /run/balloond/api.sock)'
complete -c balloonctl -n '__balloonctl_at set' -l json -d 'as balloond answers: docs/api.md'
complete -c balloonctl -n '__balloonctl_at set' -l for -x -d '90s, 10m or 1d'
complete -c balloonctl -n '__balloonctl_at set' -a '(__balloonctl_vms)'
complete -c balloonctl -n '__balloonctl_at doctor' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at doctor' -l api -rF -d 'the socket of balloond'\''s API (default: /run/balloond/api.sock)'
complete -c balloonctl -n '__balloonctl_at doctor' -l root -x -d 'look at copies of /proc, /sys and /etc in DIR, another host'\''s, and ask no balloond'
complete -c balloonctl -n '__balloonctl_at doctor' -l json -d 'one JSON object: docs/doctor.md'
complete -c balloonctl -n '__balloonctl_at demo' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at demo' -l vm-mem -x -d 'the guest'\''s memory, 500M to 16G, most of it never touched (default: 4G)'
complete -c balloonctl -n '__balloonctl_at demo' -l speed -x -d 'the policy'\''s timers run N times faster than ChromeOS'\''s, 10 to 50 (default: 15)'
complete -c balloonctl -n '__balloonctl_at demo' -l json -d 'end with the figures, one JSON object on one line'
complete -c balloonctl -n '__balloonctl_at demo' -l plot -rF -d 'draw what happened'
complete -c balloonctl -n '__balloonctl_at demo' -l plain -d 'a line a second instead of the live chart'
complete -c balloonctl -n '__balloonctl_ends seccomp' -a check -d 'say all that is wrong with policy files, and whether libseccomp makes the same of them; exit status 0, 2, or 1 where libseccomp disagrees'
complete -c balloonctl -n '__balloonctl_ends seccomp' -a explain -d 'say in words what a policy allows, and what is missing'
complete -c balloonctl -n '__balloonctl_ends seccomp' -a test -d 'say what happens to one call, and which rule decides'
complete -c balloonctl -n '__balloonctl_ends seccomp' -a compile -d 'write the filter for another launcher to load'
complete -c balloonctl -n '__balloonctl_ends seccomp' -a run -d 'run a command under a policy and name the call that a violation made'
complete -c balloonctl -n '__balloonctl_ends seccomp' -a trace -d 'run a command with everything allowed and write a policy for the calls it made'
complete -c balloonctl -n '__balloonctl_at seccomp' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at seccomp check' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at seccomp check' -l arch -x -d 'for which architecture: x86_64, aarch64, riscv64 (default: this machine'\''s)'
complete -c balloonctl -n '__balloonctl_at seccomp check' -l default -xa 'allow kill kill-process kill-thread log trace trap user-notify' -d 'for calls that nothing allows, where no @default says otherwise: allow, kill, kill-process, kill-thread, log, trace, trap, user-notify (default: kill-process)'
complete -c balloonctl -n '__balloonctl_at seccomp check' -l dialect -xa 'python c' -d 'which of minijail'\''s compilers to follow: python, compile_seccomp_policy (default), or c, minijail0 -S, which reads '\''condition'
complete -c balloonctl -n '__balloonctl_at seccomp check' -l include-map -x -d 'read included files whose path starts with FROM from TO instead'
complete -c balloonctl -n '__balloonctl_at seccomp check' -l json -d 'write one JSON object'
complete -c balloonctl -n '__balloonctl_at seccomp check' -F
complete -c balloonctl -n '__balloonctl_at seccomp explain' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at seccomp explain' -l arch -x -d 'for which architecture: x86_64, aarch64, riscv64 (default: this machine'\''s)'
complete -c balloonctl -n '__balloonctl_at seccomp explain' -l default -xa 'allow kill kill-process kill-thread log trace trap user-notify' -d 'for calls that nothing allows, where no @default says otherwise: allow, kill, kill-process, kill-thread, log, trace, trap, user-notify (default: kill-process)'
complete -c balloonctl -n '__balloonctl_at seccomp explain' -l dialect -xa 'python c' -d 'which of minijail'\''s compilers to follow: python, compile_seccomp_policy (default), or c, minijail0 -S, which reads '\''condition'
complete -c balloonctl -n '__balloonctl_at seccomp explain' -l include-map -x -d 'read included files whose path starts with FROM from TO instead'
complete -c balloonctl -n '__balloonctl_at seccomp explain' -F
complete -c balloonctl -n '__balloonctl_at seccomp test' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at seccomp test' -l arch -x -d 'for which architecture: x86_64, aarch64, riscv64 (default: this machine'\''s)'
complete -c balloonctl -n '__balloonctl_at seccomp test' -l default -xa 'allow kill kill-process kill-thread log trace trap user-notify' -d 'for calls that nothing allows, where no @default says otherwise: allow, kill, kill-process, kill-thread, log, trace, trap, user-notify (default: kill-process)'
complete -c balloonctl -n '__balloonctl_at seccomp test' -l dialect -xa 'python c' -d 'which of minijail'\''s compilers to follow: python, compile_seccomp_policy (default), or c, minijail0 -S, which reads '\''condition'
complete -c balloonctl -n '__balloonctl_at seccomp test' -l include-map -x -d 'read included files whose path starts with FROM from TO instead'
complete -c balloonctl -n '__balloonctl_at seccomp test' -F
complete -c balloonctl -n '__balloonctl_at seccomp compile' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at seccomp compile' -l arch -x -d 'for which architecture: x86_64, aarch64, riscv64 (default: this machine'\''s)'
complete -c balloonctl -n '__balloonctl_at seccomp compile' -l default -xa 'allow kill kill-process kill-thread log trace trap user-notify' -d 'for calls that nothing allows, where no @default says otherwise: allow, kill, kill-process, kill-thread, log, trace, trap, user-notify (default: kill-process)'
complete -c balloonctl -n '__balloonctl_at seccomp compile' -l dialect -xa 'python c' -d 'which of minijail'\''s compilers to follow: python, compile_seccomp_policy (default), or c, minijail0 -S, which reads '\''condition'
complete -c balloonctl -n '__balloonctl_at seccomp compile' -l include-map -x -d 'read included files whose path starts with FROM from TO instead'
complete -c balloonctl -n '__balloonctl_at seccomp compile' -s o -l output -rF -d '- for stdout'
complete -c balloonctl -n '__balloonctl_at seccomp compile' -l format -xa 'bpf pfc' -d 'bpf: struct sock_filter, as minijail0 --seccomp-bpf-binary and bubblewrap --seccomp load it'
complete -c balloonctl -n '__balloonctl_at seccomp compile' -F
complete -c balloonctl -n '__balloonctl_at seccomp run' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at seccomp run' -l arch -x -d 'for which architecture: x86_64, aarch64, riscv64 (default: this machine'\''s)'
complete -c balloonctl -n '__balloonctl_at seccomp run' -l default -xa 'allow kill kill-process kill-thread log trace trap user-notify' -d 'for calls that nothing allows, where no @default says otherwise: allow, kill, kill-process, kill-thread, log, trace, trap, user-notify (default: kill-process)'
complete -c balloonctl -n '__balloonctl_at seccomp run' -l dialect -xa 'python c' -d 'which of minijail'\''s compilers to follow: python, compile_seccomp_policy (default), or c, minijail0 -S, which reads '\''condition'
complete -c balloonctl -n '__balloonctl_at seccomp run' -l include-map -x -d 'read included files whose path starts with FROM from TO instead'
complete -c balloonctl -n '__balloonctl_at seccomp run' -l from -xa 'entry exec' -d 'entry: the filter counts from the program'\''s own entry, after its dynamic loader, as with minijail0 (default)'
complete -c balloonctl -n '__balloonctl_at seccomp run' -F
complete -c balloonctl -n '__balloonctl_at seccomp trace' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at seccomp trace' -l from -xa 'entry exec' -d 'entry: the filter counts from the program'\''s own entry, after its dynamic loader, as with minijail0 (default)'
complete -c balloonctl -n '__balloonctl_at seccomp trace' -s o -l output -rF -d 'where to (default: stdout)'
complete -c balloonctl -n '__balloonctl_at history' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at history' -l vm -xa '(__balloonctl_vms)' -d 'this VM alone'
complete -c balloonctl -n '__balloonctl_at history' -l since -x -d 'the last TIME alone'
complete -c balloonctl -n '__balloonctl_at history' -l samples -d 'samples in place of decisions'
complete -c balloonctl -n '__balloonctl_at history' -l json -d 'print one JSON object a line'
complete -c balloonctl -n '__balloonctl_at history' -F
complete -c balloonctl -n '__balloonctl_at plot' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at plot' -s o -l output -rF -d 'the picture'
complete -c balloonctl -n '__balloonctl_at plot' -l history -rF -d 'the file that balloond --history keeps (default: the first that exists of /run/balloond/history.db and /var/lib/balloond/history.db)'
complete -c balloonctl -n '__balloonctl_at plot' -l since -x -d 'the last TIME of what the file has'
complete -c balloonctl -n '__balloonctl_at plot' -a '(__balloonctl_vms)'
complete -c balloonctl -n '__balloonctl_at simulate' -s h -l help -d 'show this help message and exit'
complete -c balloonctl -n '__balloonctl_at simulate' -l set -x -d 'another value of a setting, for all VMs'
complete -c balloonctl -n '__balloonctl_at simulate' -l profile -xa 'seed careful' -d 'another profile, for all VMs'
complete -c balloonctl -n '__balloonctl_at simulate' -l seed -x -d 'of the random jitter, where settings are changed (default: 0)'
complete -c balloonctl -n '__balloonctl_at simulate' -l json -d 'print one JSON object'
complete -c balloonctl -n '__balloonctl_at simulate' -l plot -rF -d 'draw host and VMs as they were recorded, too'
complete -c balloonctl -n '__balloonctl_at simulate' -F

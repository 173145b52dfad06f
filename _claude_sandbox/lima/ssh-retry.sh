#!/bin/sh
# Precedes `ssh` on the PATH of `limactl start`. Lima asks for ssh at 0.3 s, when QEMU does not listen
# yet, and then every 3 s; and an attempt before the guest's network is up is lost, and slirp retries
# after 6, 18 and 42 s only (docs/performance.md). So a question for a VM's shell is asked again at
# once here, and not for longer than a guest needs for its first word. Everything else (a control command,
# a forward, `ssh -V`) goes straight to the next ssh on PATH.
#
# Lima logs in again for each of its first questions and then for its own master, and under emulation a
# login takes two seconds. With CLAUDE_SANDBOX_MASTER (ssh's words, quoted for a shell, for a master that
# serves Lima and claude-sandbox alike) and CLAUDE_SANDBOX_SHARED (its socket: the one that Lima gives its
# own) the first question opens that, and Lima finds it. It stays if our init has set this boot up as a whole:
# what a session gets does not change any more. Then CLAUDE_SANDBOX_CONTROL leads to it, through a second name
# (CLAUDE_SANDBOX_KEPT) of the very socket: not to a master that Lima opens later, which hides variables.
PATH=${PATH#"${0%/*}:"}
port='' host='' before='' master=${CLAUDE_SANDBOX_MASTER:-} shared=${CLAUDE_SANDBOX_SHARED:-}
control=${CLAUDE_SANDBOX_CONTROL:-} kept=${CLAUDE_SANDBOX_KEPT:-}
for word; do
    case $word in
        -O | -N | -V) port='' && break ;;
        127.0.0.1) host=$word ;;
        ControlPath=none | -oControlPath=none) ;;
        *ControlPath=* | -S) master='' ;;
        --) break ;;
    esac
    [ "$before" != -p ] || port=$word
    before=$word
done
if [ -z "$port" ] || [ -z "$host" ]; then exec ssh "$@"; fi

over() { ssh -F /dev/null -S "$shared" "$@"; }

# ask ARGUMENTS…: only the first word (connection and version) has the limit of $patience.
ask() {
    if [ -z "$master" ]; then
        ssh -o "ConnectTimeout=$patience" "$@"
        return
    fi
    if [ ! -S "$shared" ]; then
        # What it leaves behind would hold on to our stdout and stderr.
        eval "ssh -o ConnectTimeout=$patience $master" < /dev/null > /dev/null 2>&1 || return 255
    fi
    if [ -L "$control" ]; then
        over "$@"
        return
    fi
    over "$host" grep -qx fast /run/claude-sandbox/boot > /dev/null 2>&1 &
    over "$@"
    code=$?
    # In this order: what is waited for was asked beside the question.
    if wait $! && [ $code = 0 ] && ln "$shared" "$kept" && ln -s "$kept" "$control"; then return 0; fi
    over -O exit "$host" > /dev/null 2>&1
    return $code
}

begun=$(date +%s) patience=1
while :; do
    asked=$(date +%s)
    # ssh reads its stdin, Lima's script, when the shell is there, so what failed with 255 has not used it.
    ask "$@"
    code=$?
    now=$(date +%s)
    if [ $code != 255 ] || [ $((now - begun)) -ge 60 ]; then exit $code; fi
    # Refused: nobody listens yet. Else the question was lost, or the guest is slow: be more patient.
    if [ "$now" = "$asked" ]; then
        sleep 0.1
    else
        patience=$((patience < 8 ? patience + 1 : 8))
    fi
done

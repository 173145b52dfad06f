#!/bin/sh
# A hook of Claude Code: takes one event (JSON on stdin) and makes sure that the host hears of it.
#
# In a sandbox Claude sources it (hooks/guest_setup.py) and the event goes into a queue on the guest's disk,
# $HOME/.claude-sandbox/hooks/BOOT/N, in order of N, whole or not at all. hooks-deliver.pl brings it to the
# host, again until that has it. By hand: `CLAUDE_HOOKS_SOCKET=… hook.sh <payload`.
#
# Claude must never be stopped or delayed: this ends with 0 whatever is wrong, and every program that it
# starts costs a millisecond (30 under emulation): cat, flock and mv, no more. An event's time is its file's.
trap 'exit 0' 0
exec >/dev/null 2>&1
umask 077

# number FILE: value = the number in it, or 0.
number() {
    value=0
    [ ! -f "$1" ] || read -r value <"$1"
    case $value in *[!0-9]* | '') value=0 ;; esac
}

# The first event since the guest booted gets a queue of its own: a power cut may take back the last
# numbers of one, so none goes on after it. Of queues that nobody fetched the newest five stay.
new_queue() {
    mkdir -p "$queue"
    ls -dt "$spool"/*/ | tail -n +6 | while IFS= read -r old; do rm -rf "$old"; done
}

# enqueue EVENT: 64 KiB of it (`ulimit -f` counts 512 bytes). Where many wait, 4 KiB; then none that says
# little; then the oldest goes for each new one. How many were lost is counted, and told by the deliverer.
enqueue() {
    boot='' lost='' blocks=128
    spool=$HOME/.claude-sandbox/hooks
    read -r uuid </proc/sys/kernel/random/boot_id
    IFS=-
    for part in $uuid; do boot=$boot$part; done
    unset IFS
    queue=$spool/${boot:-0000000000000000}
    [ -d "$queue" ] || new_queue

    number "$queue/seq" && waiting=$value
    number "$queue/acked" && waiting=$((waiting - value))
    asked=$queue/asked.${CLAUDE_CODE_SESSION_ID:-}
    case $1 in
    PermissionRequest) echo >"$asked" ;;
    Stop* | UserPromptSubmit | SessionEnd) [ ! -s "$asked" ] || true >"$asked" ;;
    PreToolUse | PostToolUse*)
        # That a tool has run matters after a dialog only: somebody answered it.
        case $1 in PostToolUse*) [ -s "$asked" ] || exit 0 ;; esac
        blocks=8
        [ $waiting -lt 1000 ] || lost=1
        ;;
    esac
    [ $waiting -lt 256 ] || blocks=8

    new=$queue/new.$$
    if [ -z "$lost" ]; then
        ulimit -c 0
        ulimit -f $blocks
        # The last cat: there was no room for all of it, and Claude writes on.
        {
            printf '%s %s\n%s\n' "${CLAUDE_PID:-$PPID}" "${CLAUDE_SANDBOX_UUID:-}" "${CLAUDE_PROJECT_DIR:-$PWD}"
            cat
        } >"$new" || cat
    fi
    {
        flock 9
        if [ -z "$lost" ]; then
            number "$queue/seq"
            seq=$((value + 1))
            echo $seq 1<>"$queue/seq" # in place, so never empty
            mv -f "$new" "$queue/$seq"
            oldest=$queue/$((seq - 5000))
            if [ -f "$oldest" ]; then lost=1 && rm -f "$oldest"; fi
        fi
        if [ -n "$lost" ]; then
            number "$queue/lost"
            echo $((value + 1)) 1<>"$queue/lost"
        fi
    } 9>>"$queue/lock"
    # Opened for reading too: that never waits for a reader, and without one nothing piles up.
    [ ! -p "$spool/wake" ] || echo 1<>"$spool/wake"
}

# direct: one POST to $CLAUDE_HOOKS_SOCKET, as hooks-deliver.pl does it.
direct() {
    read -r uuid </proc/sys/kernel/random/uuid || uuid=$(date +%s)$$
    id=$(printf %s "$uuid" | tr -dc 0-9a-f)
    payload=$(head -c 65537 | tr '\n\r\000' '   ')
    if [ ${#payload} -gt 65536 ]; then
        payload="\"head\":\"$(printf %s "$payload" | head -c 2048 | base64 | tr -d '\n')\""
    else
        payload="\"payload\":$payload"
    fi
    words=$(printf '"uuid":"%s","project":"%s"' \
        "$(plain "${CLAUDE_SANDBOX_UUID:-}")" "$(plain "${CLAUDE_PROJECT_DIR:-$PWD}")")
    ns=$(date +%s%N)
    case $ns in *[!0-9]*) ns=$(date +%s)000000000 ;; esac
    now=$(date -u +%Y-%m-%dT%H:%M:%S).${ns#"${ns%?????????}"}Z
    event="{\"id\":\"$id:1\",\"time\":\"$now\",\"time_ns\":$ns,\"pid\":$PPID,$words,$payload}"
    if command -v curl; then
        printf '%s\n' "$event" | curl -sf -m 2 --unix-socket "$CLAUDE_HOOKS_SOCKET" \
            -H 'Content-Type: application/x-ndjson' --data-binary @- http://localhost/v1/events
    else
        printf '%s\n' "$event" | perl -MIO::Socket::UNIX -e '
            undef $/; my $body = <STDIN>;
            my $server = IO::Socket::UNIX->new($ENV{CLAUDE_HOOKS_SOCKET}) or exit;
            print $server "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: ",
                length $body, "\r\n\r\n", $body;
            $server->flush; <$server>'
    fi
}

# plain TEXT: fit to stand between JSON's quotes.
plain() { printf %s "$1" | tr -d '\000-\037' | sed 's/[\\"]/\\&/g'; }

if [ "${1:-}" = queue ]; then
    enqueue "${2:-}"
elif [ -n "${CLAUDE_HOOKS_SOCKET:-}" ] && [ ! -t 0 ]; then
    way=direct
    case $CLAUDE_HOOKS_SOCKET in
    /run/user/*/claude-hooks.sock) [ ! -d "$HOME/.claude-sandbox/hooks" ] || way=enqueue ;;
    esac
    exec 3<&0
    $way <&3 &
    worker=$!
    (sleep 2 && kill $worker) &
    wait $worker
    kill $!
fi
exit 0

#!/bin/sh
# Wraps `rec` and `arecord` in a sandbox that was launched with --voice. It knows the few command
# lines with which Claude Code's /voice calls them, and gets the sound from the host's microphone through
# a forwarded socket. Any other arguments, or no such socket: the real program, the next on PATH.
# Programs are started by exec, so that the SIGTERM that stops a recording reaches the client itself.
me=${0##*/}
socket=${CLAUDE_AUDIO_SOCKET:-${XDG_RUNTIME_DIR:-/run/user/$(id -u)}/claude-audio.sock}

real() {
    here=${0%/*}
    IFS=:
    for place in $PATH; do
        if [ -x "$place/$me" ] && [ ! -d "$place/$me" ] && [ ! "$place" -ef "$here" ]; then
            unset IFS
            exec "$place/$me" "$@"
        fi
    done
    echo "$me: there is no sound from the host (claude-sandbox --voice), and no other $me here" >&2
    exit 127
}

# get PATH: the body of the answer on stdout. Perl has no HTTP client of its own; HTTP/1.0 is not chunked.
get() {
    if command -v curl >/dev/null 2>&1; then
        exec curl -q --silent --show-error --fail --no-buffer --noproxy '*' \
            --unix-socket "$socket" "http://localhost$1"
    fi
    if command -v perl >/dev/null 2>&1; then
        # shellcheck disable=SC2016
        exec perl -e '
            use strict; use Socket;
            my ($path, $what) = @ARGV;
            socket(my $host, PF_UNIX, SOCK_STREAM, 0) or die "$path: $!\n";
            connect($host, sockaddr_un($path)) or die "$path: $!\n";
            my ($ask, $data) = ("GET $what HTTP/1.0\r\nHost: localhost\r\n\r\n", "");
            syswrite($host, $ask) == length $ask or die "$path: $!\n";
            while ($data !~ /\r\n\r\n/) {
                die "$path: no answer\n" if length $data > 16384 or !sysread($host, $data, 4096, length $data);
            }
            $data =~ s/^(.*?)\r\n.*?\r\n\r\n//s;
            die "The host says: $1\n" if $1 !~ m{^HTTP/1\.[01] 200 };
            do {
                my $at = 0;
                while ($at < length $data) { $at += syswrite(STDOUT, $data, length($data) - $at, $at) // exit 1 }
            } while (sysread($host, $data, 65536));
        ' "$socket" "$1"
    fi
    echo "$me: neither curl nor perl is here to fetch the sound" >&2
    exit 127
}

[ -S "$socket" ] || real "$@"
case "$me $*" in
"arecord --version") echo "arecord: the host's microphone (claude-sandbox --voice)" ;;
"rec --version") echo "rec: the host's microphone (claude-sandbox --voice)" ;;
"arecord -f S16_LE -r 16000 -c 1 -t raw /dev/null") # a probe: lives on if there is a microphone
    (get /v1/probe) >/dev/null || exit 1
    exec sleep 3600
    ;;
"arecord -f S16_LE -r 16000 -c 1 -t raw -q -") get /v1/record ;;
"rec -q --buffer 1024 -t raw -r 16000 -e signed -b 16 -c 1 -") get /v1/record ;;
"rec -q --buffer 1024 -t raw -r 16000 -e signed -b 16 -c 1 - silence 1 0.1 3% 1 2.0 3%") get "/v1/record?end=silence" ;;
*) real "$@" ;;
esac

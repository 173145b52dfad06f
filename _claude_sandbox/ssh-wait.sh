#!/bin/sh
# Stands before `ssh` on the PATH of `limactl start`. Lima asks for ssh at 0.3 s, when QEMU does not listen
# yet, and then every 3 s; and a question that comes before the guest's network is up is lost, and repeated
# by slirp after 6, 18 and 42 s only (docs/performance.md). So a question for a VM's shell is asked again at
# once here, and not for longer than a guest needs for its first word. Everything else (a control command,
# a forward, `ssh -V`) goes straight to the next ssh on PATH.
PATH=${PATH#"${0%/*}:"}
port='' host='' before=''
for word; do
    case $word in
        -O | -N | -V) port='' && break ;;
        127.0.0.1) host=$word ;;
        --) break ;;
    esac
    [ "$before" != -p ] || port=$word
    before=$word
done
if [ -z "$port" ] || [ -z "$host" ]; then exec ssh "$@"; fi

begun=$(date +%s) patience=1
while :; do
    asked=$(date +%s)
    # Only the first word (connection and version) has this limit. ssh reads its stdin, Lima's script,
    # when the shell is there, so what failed with 255 has not used it.
    ssh -o "ConnectTimeout=$patience" "$@"
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

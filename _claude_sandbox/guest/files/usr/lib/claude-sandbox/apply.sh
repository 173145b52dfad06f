# shellcheck shell=sh
# Puts into effect what cidata.sh has read. Sourced. ROOT is empty, or a directory that stands for / in
# tests. What is on the disk is written only when it differs, and replaced by a rename: a power cut at
# any point leaves the old file or the new one, and the next boot does what is missing.
# shellcheck disable=SC2154  # from cidata.sh

say() { echo "claude-sandbox: $*"; }

# File by file into a staging directory; `commit` moves all into /etc with one program.
staged=
stage() {
    [ -d "$ROOT/etc/.claude-sandbox" ] || mkdir "$ROOT/etc/.claude-sandbox"
    printf %s "$2" > "$ROOT/etc/.claude-sandbox/$1"
    staged="$staged $1"
}
commit() {
    [ -n "$staged" ] || return 0
    (cd "$ROOT/etc/.claude-sandbox" && for name in $staged; do set -- "$@" "$name"; done && mv -f "$@" ..)
    staged=
}

# content FILE -> text, with builtins
content() {
    text=
    [ -f "$1" ] || return 0
    while IFS= read -r line || [ -n "$line" ]; do text=$text$line$NEWLINE; done < "$1"
}

apply_hostname() {
    content "$ROOT/etc/hostname"
    echo "$host_name" > "$ROOT/proc/sys/kernel/hostname"
    [ "$text" = "$host_name$NEWLINE" ] || stage hostname "$host_name$NEWLINE"
}

# The own name must be there, or every sudo asks the DNS. Other lines are the user's.
apply_hosts() {
    new='' old=''
    if [ -f "$ROOT/etc/hosts" ]; then
        while IFS= read -r line || [ -n "$line" ]; do
            old=$old$line$NEWLINE
            case $line in
                *host.lima.internal* | '127.0.1.1'*) ;;
                *) new=$new$line$NEWLINE ;;
            esac
        done < "$ROOT/etc/hosts"
    fi
    new="${new}127.0.1.1$TAB$host_name$NEWLINE$env_SLIRP_GATEWAY${TAB}host.lima.internal$NEWLINE"
    [ "$new" = "$old" ] || stage hosts "$new"
}

# As Lima's 07-etc-environment.sh does it.
apply_environment() {
    new='' old='' inside=''
    if [ -f "$ROOT/etc/environment" ]; then
        while IFS= read -r line || [ -n "$line" ]; do
            old=$old$line$NEWLINE
            case $line in
                *'#LIMA-START'*) inside=yes ;;
                *'#LIMA-END'*) inside= ;;
                *) [ -n "$inside" ] || new=$new$line$NEWLINE ;;
            esac
        done < "$ROOT/etc/environment"
    fi
    content "$1/etc_environment"
    [ "$new$text" = "$old" ] || stage environment "$new$text"
}

# Only where nobody else does it (Ubuntu's resolved makes it a link).
apply_resolver() {
    [ -n "$NAMESERVERS" ] && [ ! -L "$ROOT/etc/resolv.conf" ] || return 0
    new=
    for address in $NAMESERVERS; do new="${new}nameserver $address$NEWLINE"; done
    content "$ROOT/etc/resolv.conf"
    [ "$new" = "$text" ] || stage resolv.conf "$new"
}

apply_timezone() {
    [ -n "$TIMEZONE" ] && [ -f "$ROOT/usr/share/zoneinfo/$TIMEZONE" ] || return 0
    content "$ROOT/etc/timezone"
    [ "$text" != "$TIMEZONE$NEWLINE" ] || return 0
    ln -sfn "/usr/share/zoneinfo/$TIMEZONE" "$ROOT/etc/localtime.new" &&
        mv -T "$ROOT/etc/localtime.new" "$ROOT/etc/localtime"
    stage timezone "$TIMEZONE$NEWLINE"
}

# Lima's keys are added to the user's own. The home directory is the user's, so links are not followed.
apply_keys() {
    file=$ROOT$env_HOME/.ssh/authorized_keys
    content "$file"
    missing=
    rest=$KEYS
    while [ -n "$rest" ]; do
        key=${rest%%"$NEWLINE"*} rest=${rest#*"$NEWLINE"}
        case $NEWLINE$text in *"$NEWLINE$key$NEWLINE"*) ;; *) missing=$missing$key$NEWLINE ;; esac
    done
    [ -n "$missing" ] || return 0
    if [ -L "$file" ] || [ -L "${file%/*}" ]; then
        say "$file is a link: keys are left alone"
        return 0
    fi
    [ -d "${file%/*}" ] || install -d -m 700 -o "$env_USER" -g "$user_gid" "${file%/*}"
    printf %s "$text$missing" > "$file.new"
    chmod 600 "$file.new"
    chown "$env_USER:$user_gid" "$file.new"
    mv -f "$file.new" "$file"
}

# find_user -> user_gid; fails when the user is not the one in cidata.
find_user() {
    user_gid=
    while IFS=: read -r name _ uid gid _ home _; do
        if [ "$name:$uid:$home" = "$env_USER:$env_UID:$env_HOME" ]; then user_gid=$gid; fi
    done < "$ROOT/etc/passwd"
    [ -n "$user_gid" ] && [ -d "$ROOT$env_HOME" ]
}

# An own key for each clone; a file that a power cut left empty is no key.
make_host_key() {
    key=$ROOT/etc/ssh/ssh_host_ed25519_key
    [ ! -s "$key" ] || [ ! -s "$key.pub" ] || return 0
    rm -f "$key.new" "$key.new.pub"
    ssh-keygen -q -t ed25519 -N '' -C root -f "$key.new" && mv -f "$key.new.pub" "$key.pub" && mv -f "$key.new" "$key"
}

# own_machine: note whose disk this is, by the network address that Lima gives each VM. The copy of a sandbox
# gets ids of its own; our initrd has seen to that, before systemd took them, where the image has it.
own_machine() {
    file=$ROOT/var/lib/claude-sandbox/machine
    content "$file"
    [ "$text" != "$MAC$NEWLINE" ] || return 0
    if [ -n "$text" ]; then
        : > "$ROOT/etc/ssh/ssh_host_ed25519_key"
        make_host_key
        read -r id < "$ROOT/proc/sys/kernel/random/uuid"
        new=
        while case $id in *-*) true ;; *) false ;; esac do
            new=$new${id%%-*} id=${id#*-}
        done
        echo "$new$id" > "$ROOT/etc/machine-id"
    fi
    echo "$MAC" > "$file"
}

# measure POINT -> depth_of (slashes), escaped (as in fstab)
measure() {
    depth_of=0 rest=$1 escaped=
    while case $rest in */*) true ;; *) false ;; esac do
        rest=${rest#*/} depth_of=$((depth_of + 1))
    done
    rest=$1
    while case $rest in *' '*) true ;; *) false ;; esac do
        escaped="$escaped${rest%%' '*}\\040" rest=${rest#*' '}
    done
    escaped=$escaped$rest
}

# table_of_mounts -> table: for mount(8), parents before their children; missing points are made.
table_of_mounts() {
    table='' depth=1 left=$MOUNTS
    while [ -n "$left" ]; do
        later=
        while [ -n "$left" ]; do
            line=${left%%"$NEWLINE"*} left=${left#*"$NEWLINE"}
            fields=${line#*"$TAB"} tag=${line%%"$TAB"*}
            point=${fields%%"$TAB"*} fields=${fields#*"$TAB"}
            measure "$point"
            if [ $depth_of -gt $depth ]; then
                later=$later$line$NEWLINE
            else
                table="$table$tag $escaped ${fields%%"$TAB"*} ${fields#*"$TAB"},X-mount.mkdir 0 0$NEWLINE"
            fi
        done
        left=$later depth=$((depth + 1))
    done
}

apply_mounts() {
    [ -n "$MOUNTS" ] || return 0
    table_of_mounts
    printf %s "$table" > "$ROOT/run/claude-sandbox/fstab"
    mount --all --fstab "$ROOT/run/claude-sandbox/fstab" || say "a mount failed"
}

# The root disk, when it has another size than at the last boot; recorded when it is done.
apply_growth() {
    while read -r _ _ device _ point _; do
        [ "$point" != / ] || break
    done < "$ROOT/proc/self/mountinfo"
    sys=$ROOT/sys/dev/block/$device disk=
    [ ! -e "$sys/partition" ] || disk=/..
    size='' known='' part='' name=''
    read -r size < "$sys$disk/size" || return 0
    [ ! -f "$ROOT/var/lib/claude-sandbox/disk" ] || read -r known < "$ROOT/var/lib/claude-sandbox/disk"
    [ "$size" != "$known" ] || return 0
    while IFS= read -r line; do
        case $line in DEVNAME=*) name=${line#DEVNAME=} ;; esac
    done < "$sys/uevent"
    if [ -n "$disk" ]; then
        read -r part < "$sys/partition"
        whole=${name%"$part"}
        growpart "/dev/${whole%p}" "$part" || say "the partition has its size already"
    fi
    resize2fs "/dev/$name" 2>&1 && echo "$size" > "$ROOT/var/lib/claude-sandbox/disk"
}

# The host's certificates, when they are others than at the last boot. They are the one thing that can
# be long. Fails when what follows them in the file is not known.
apply_certificates() {
    [ -n "$CERTIFICATES" ] || return 0
    into=$ROOT/run/claude-sandbox/ca
    mkdir -p "$into"
    awk -v into="$into" '
        /^ca_certs:/ { inside = 1; next }
        /^[a-z]/ { inside = 0; key = $1 }
        inside && /^  remove_defaults: true/ { exit 3 }
        inside && /^  - \|/ { file = sprintf("%s/claude-sandbox-host-%d.crt", into, ++count); next }
        inside && /^    / && file { sub(/^ +/, ""); print > file; next }
        key == "bootcmd:" && /^- \|/ { heal = 0; items++ }
        key == "bootcmd:" && /^  # Work around the NIC rename race/ { healed++ }
        /^[a-z]/ && !/^(growpart|users|write_files|manage_resolv_conf|resolv_conf|bootcmd|mounts|packages|timezone|ca_certs):/ { exit 3 }
        END { if (items != healed) exit 3 }' "$1/user-data" || return 1
    place=$ROOT/usr/local/share/ca-certificates
    set -- "$place"/claude-sandbox-host-*.crt
    old=$#
    [ -f "$1" ] || old=0
    set -- "$into"/*.crt
    stamp=$ROOT/var/lib/claude-sandbox/certificates # they are in the system's bundle
    if [ $# = $old ] && [ -e "$stamp" ]; then
        same=yes
        for file; do cmp -s "$file" "$place/${file##*/}" || same=; done
        [ -z "$same" ] || return 0
    fi
    rm -f "$stamp" "$place"/claude-sandbox-host-*.crt
    if mkdir -p "$place" && cp "$@" "$place/" && update-ca-certificates > /dev/null 2>&1; then
        : > "$stamp"
    else
        say "the host's certificates were not taken"
    fi
}

# baked DIRECTORY: Lima's boot.sh of this very release has done its work on this disk before, with this
# agent and these ports. Go writes its build id into the first page; what follows differs with it.
baked() {
    agent=$ROOT$env_GUEST_INSTALL_PREFIX/bin/lima-guestagent
    [ -x "$agent" ] || return 1
    content "$ROOT/etc/systemd/system/lima-guestagent.service"
    case $env_VSOCK_PORT:$env_VIRTIO_PORT in
        0:) option="--socket-owner $env_UID" ;;
        0:*) option=--virtio-port\ $env_VIRTIO_PORT ;;
        *) option=--vsock-port\ $env_VSOCK_PORT ;;
    esac
    case $text in *"ExecStart=$env_GUEST_INSTALL_PREFIX/bin/lima-guestagent daemon"*"$option"*) ;; *) return 1 ;; esac
    cmp -s -n 65536 "$1/lima-guestagent" "$agent"
}

# done_here SCRIPT: whether the work of this script of boot.Linux is in the image, or was done by this init.
done_here() {
    case $1 in
        00-check-rtc-and-wait-ntp.sh) [ -c "$ROOT/dev/rtc0" ] ;;
        05-lima-disks.sh) [ "$env_DISKS" = 0 ] ;;
        30-install-packages.sh) [ ! -d "$2/provision.dependency" ] ;;
        00-modprobe.sh | 00-reboot-if-required.sh | 00-systemd-user-group.sh | 04-persistent-data-volume.sh) ;;
        05-guest-home.sh | 05-lima-mounts.sh | 06-enable-mdns-on-systemd.sh | 06-etc-hosts.sh) ;;
        07-etc-environment.sh | 08-shell-prompt.sh | 09-host-dns-setup.sh | 10-alpine-cgroups.sh) ;;
        11-colorterm-environment.sh | 20-rootless-base.sh | 25-guestagent-base.sh | 26-host-services.sh) ;;
        35-setup-packages.sh | 40-install-containerd.sh) ;;
        *) return 1 ;;
    esac
}

# remaining DIRECTORY -> scripts (of boot.Linux, between spaces), more (yes when boot.sh has other work)
remaining() {
    scripts='' more=''
    for file in "$1"/boot.Linux/*.sh; do
        done_here "${file##*/}" "$1" || scripts="$scripts${file##*/} "
    done
    for file in "$1"/provision.*; do [ ! -d "$file" ] || more=yes; done
}

# shellcheck shell=sh
# Reads Lima's cidata and says whether it is of a kind that we know. Sourced; works with builtins alone
# (a fork costs 60 ms under emulation). What is relied on, in Lima 2.1 and 2.2 (pkg/cidata/cidata.TEMPLATE.d):
#   meta-data    instance-id and local-hostname, nothing else
#   lima.env     KEY=value to the end of the line; REQUIRED below must be there
#   user-data    the top-level keys in read_user_data; mounts as
#                `- [tag, point, type, "options", "0", "0"]` in the order of lima.env's MOUNTS_n_MOUNTPOINT;
#                one user; keys as `      - "ssh-…"`
#   network-config  one `  NAME:` below ethernets with a macaddress
# Everything else is for cloud-init: `unknown` then says what was met.

REQUIRED="USER UID HOME MOUNTS MOUNTTYPE DISKS GUEST_INSTALL_PREFIX SLIRP_DNS SLIRP_GATEWAY
UDP_DNS_LOCAL_PORT TCP_DNS_LOCAL_PORT VMTYPE VSOCK_PORT VIRTIO_PORT"
# Known and of no consequence here, or consequent only when they are not empty (check_env).
OPTIONAL="DEBUG IID NAME COMMENT SHELL HOSTHOME_MOUNTPOINT UPGRADE_PACKAGES CONTAINERD_USER CONTAINERD_SYSTEM
CONTAINERD_ARCHIVE SLIRP_IP_ADDRESS ROSETTA_ENABLED ROSETTA_BINFMT SKIP_DEFAULT_DEPENDENCY_RESOLUTION PLAIN
NO_CLOUD_INIT PASSWORDLESS_SUDO"
TAB='	'
NEWLINE='
'
unknown=
full= # why Lima's whole boot.sh must run

# met WHAT: the first thing that is not known decides.
met() { [ -n "$unknown" ] || unknown=$1; }

# read_meta_data FILE -> IID, host_name
read_meta_data() {
    IID='' host_name=''
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            'instance-id: '*) IID=${line#instance-id: } ;;
            'local-hostname: '*) host_name=${line#local-hostname: } ;;
            '') ;;
            *) met "meta-data: ${line%%:*}" ;;
        esac
    done < "$1"
    [ -n "$IID" ] || met "meta-data without instance-id"
    case $host_name in '' | *[!A-Za-z0-9.-]*) met "meta-data without a local-hostname" ;; esac
}

# read_lima_env FILE -> env_KEY for the keys above, POINTS (one a line, in order)
read_lima_env() {
    POINTS='' keys=' '
    for key in $REQUIRED $OPTIONAL; do eval "env_$key="; done
    while IFS= read -r line || [ -n "$line" ]; do
        [ -n "$line" ] || continue
        key=${line%%=*} value=${line#*=}
        case $key in LIMA_CIDATA_*) key=${key#LIMA_CIDATA_} ;; *) met "lima.env: $key" ;; esac
        case $key in
            MOUNTS_*_MOUNTPOINT) POINTS=$POINTS$value$NEWLINE ;;
            DISK_*_* | DATAFILE_*_* | YQ_PROVISION_*_*) ;; # for boot.sh
            *[!A-Z0-9_]* | '') met "lima.env: $key" ;;
            *)
                case " $REQUIRED $OPTIONAL " in
                    *[\ "$NEWLINE"]"$key"[\ "$NEWLINE"]*) eval "env_$key=\$value" ;;
                    *) full="lima.env has a new key, $key" ;; # boot.sh reads it itself
                esac
                keys="$keys$key "
                ;;
        esac
    done < "$1"
    for key in $REQUIRED; do
        case $keys in *" $key "*) ;; *) met "lima.env without $key" ;; esac
    done
}

# check_env: what lima.env asks for that only cloud-init or Lima's whole boot.sh can do.
check_env() {
    case $env_MOUNTTYPE in 9p | virtiofs) ;; *) [ "$env_MOUNTS" = 0 ] || met "mounts by $env_MOUNTTYPE" ;; esac
    [ -z "$env_PLAIN" ] || met "a plain VM"
    [ -z "$env_NO_CLOUD_INIT" ] || met "a VM without cloud-init"
    [ -z "$env_UPGRADE_PACKAGES" ] || met "an upgrade of all packages"
    # The initrd of an image from packages has set this address, and nothing there asks for another.
    if [ -f "$here/address" ]; then
        read -r address < "$here/address"
        [ "$env_VMTYPE:$env_SLIRP_IP_ADDRESS" = "qemu:$address" ] || met "another network than $address"
    fi
    case $env_VMTYPE in qemu | vz) ;; *) met "vmType $env_VMTYPE" ;; esac
    case $env_HOME in /*) ;; *) met "no home directory" ;; esac
    case $env_UID in '' | *[!0-9]*) met "no uid" ;; esac
    [ -z "$env_CONTAINERD_USER$env_CONTAINERD_SYSTEM" ] || full="containerd is wanted"
}

# read_user_data FILE -> MOUNTS (tag TAB point TAB type TAB options, a line each), KEYS (a line each),
# NAMESERVERS (between spaces), TIMEZONE, USER_IN_DATA, CERTIFICATES (yes when there are some: in the rest of
# the file, which awk reads faster)
read_user_data() {
    MOUNTS='' KEYS='' NAMESERVERS='' TIMEZONE='' USER_IN_DATA='' CERTIFICATES=''
    section='' points=$POINTS users=0 heal=''
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            '' | '#'*) continue ;;
            [a-z]*)
                section=${line%%:*}
                case $section in
                    growpart | users | write_files | manage_resolv_conf | resolv_conf | bootcmd | mounts) ;;
                    packages) ;; # rsync, which is in the image
                    timezone) TIMEZONE=${line#timezone: } ;;
                    ca_certs)
                        CERTIFICATES=yes
                        return
                        ;;
                    *) met "user-data: $section" ;;
                esac
                continue
                ;;
        esac
        case $section in
            mounts) read_mount "$line" ;;
            users) read_user "$line" ;;
            resolv_conf)
                case $line in
                    '  nameservers:') ;;
                    '  - '*) NAMESERVERS="$NAMESERVERS${line#  - } " ;;
                    *) met "user-data: resolv_conf" ;;
                esac
                ;;
            bootcmd)
                # Lima's own, against a race that a kernel's own names do not have, or somebody's script.
                case $line in
                    '- |') heal=maybe ;;
                    '  # Work around the NIC rename race'*) heal=yes ;;
                    *) [ "$heal" = yes ] || met "a boot script in user-data" ;;
                esac
                ;;
            packages) [ "$line" = '  - rsync' ] || met "user-data: packages" ;;
            growpart | write_files) ;; # the same for every VM: the disk's growth, the start of boot.sh
            *) met "user-data: $section" ;;
        esac
    done < "$1"
    [ -z "$points" ] || met "mounts in lima.env that user-data does not have"
    [ "$users" = 1 ] || met "$users users in user-data"
    [ -n "$KEYS" ] || met "user-data without ssh keys"
}

read_mount() {
    case $1 in '- [vz-rosetta, /mnt/lima-rosetta, virtiofs, defaults, "0", "0"]')
        MOUNTS="${MOUNTS}vz-rosetta$TAB/mnt/lima-rosetta${TAB}virtiofs${TAB}defaults$NEWLINE"
        return
        ;;
    esac
    point=${points%%"$NEWLINE"*} points=${points#*"$NEWLINE"}
    rest=${1#- \[} tag=${1#- \[}
    tag=${tag%%, *}
    rest=${rest#"$tag, $point, "}
    type=${rest%%, *} options=${rest#*, \"}
    options=${options%%\"*}
    if [ "$1" != "- [$tag, $point, $type, \"$options\", \"0\", \"0\"]" ] || [ -z "$options" ]; then
        met "a mount in user-data: $1"
        return
    fi
    case $type in 9p | virtiofs) ;; *) met "a mount of type $type" ;; esac
    case $point$tag in *"$TAB"* | *'\'*) met "a mount point with tab or backslash" ;; /?*) ;; *) met "a mount at $point" ;; esac
    MOUNTS="$MOUNTS$tag$TAB$point$TAB$type$TAB$options$NEWLINE"
}

read_user() {
    case $1 in
        '  - name: "'*'"')
            users=$((users + 1))
            USER_IN_DATA=${1#*\"}
            USER_IN_DATA=${USER_IN_DATA%\"}
            ;;
        '    uid: '* | '    gecos: '* | '    homedir: '* | '    shell: '* | '    lock_passwd: true') ;;
        '    sudo: ALL=(ALL) NOPASSWD:ALL' | '    ssh-authorized-keys:') ;;
        '      - "'*'"')
            value=${1#*\"}
            value=${value%\"}
            case $value in *'\'*) met "an escaped ssh key" ;; *) KEYS="$KEYS$value$NEWLINE" ;; esac
            ;;
        *) met "user-data: users:${1%%:*}" ;;
    esac
}

# read_network FILE -> MAC
read_network() {
    MAC='' links=0
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            *macaddress:*)
                MAC=${line#*\'}
                MAC=${MAC%\'*}
                links=$((links + 1))
                ;;
        esac
    done < "$1"
    [ "$links" = 1 ] || met "$links networks"
}

# read_cidata DIRECTORY: all of it. `unknown` is empty when everything was understood.
read_cidata() {
    for file in meta-data lima.env user-data network-config param.env etc_environment boot.sh boot.Linux/07-etc-environment.sh; do
        [ -f "$1/$file" ] || met "no $file"
    done
    [ -z "$unknown" ] || return 0
    read_meta_data "$1/meta-data"
    read_lima_env "$1/lima.env"
    check_env
    read_network "$1/network-config"
    read_user_data "$1/user-data"
    [ "$USER_IN_DATA" = "$env_USER" ] || met "another user in user-data than in lima.env"
}

# Install packages of the guest's distribution: $@ are their names. Runs in the guest as its user.
set -eu
if command -v apt-get >/dev/null; then
  sudo apt-get -o DPkg::Lock::Timeout=300 update -q >&2
  sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -q -- "$@" >&2
elif command -v dnf >/dev/null; then
  sudo dnf install -y -- "$@" >&2
elif command -v zypper >/dev/null; then
  sudo zypper --non-interactive install -- "$@" >&2
elif command -v apk >/dev/null; then
  sudo apk add -- "$@" >&2
else
  echo "this guest has no package manager that claude-sandbox knows (apt, dnf, zypper, apk)" >&2
  exit 1
fi

"""Who runs Lima: limactl refuses to run as root, so we switch user or run it in a user namespace.

As root on Linux, in this order: the user who called sudo; the project's owner; else limactl runs in
a user namespace that shows our uid 0 as an ordinary user's number. In there it has root's rights as
an owner but none of root's privileges, so a project of another uid would be out of reach: hence the
order (docs/facts/checked.md, "Root on Linux through a user namespace"). ssh and Go look the number up in
passwd, so a user of that number must exist; and it must be free in the guest, whose user gets the
same number (9p shows numbers), so a system user such as nobody will not do.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import sys
from pathlib import Path

from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.lima import context as lima_context
from _claude_sandbox.system import program
from _claude_sandbox.system.run import Command, Runner

PREFERRED_UID = 1000
_ORDINARY = range(1000, 60000)  # login.defs UID_MIN to UID_MAX
FALLBACK_NAME = "lima"  # Lima's own (pkg/osutil/user.go), also for "admin"
NAMESPACE_USER = "claude-sandbox"  # what `setup` adds where there is no ordinary user at all
_GUEST_NAME = re.compile(r"[a-z_][a-z0-9_-]*")
_USERNS_LIMIT = Path("/proc/sys/user/max_user_namespaces")

WARNING = (
    "You are root, and Lima does not run as root: the VM runs in a user namespace, with root's files "
    "and without root's privileges. An ordinary user is the better choice."
)


def is_root() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0


def leave_other_homes() -> None:
    """As root with the HOME of somebody else (`sudo -E`, sudo on macOS) take root's own.

    What root made in the other one its owner could neither change nor remove, and a root-owned ~/.cache
    stops every program of that user. The launcher has done it for its own first steps; a later change to
    that user (`become_user`) sets that user's HOME again.
    """
    if os.geteuid() != 0:
        return
    for name in [name for name in os.environ if name.startswith("XDG_") and name.endswith(("_HOME", "_DIR"))]:
        _leave(name)
    if not _belongs_to_root(Path(os.environ.get("HOME") or "/")):
        os.environ.update(HOME=pwd.getpwuid(0).pw_dir, USER="root", LOGNAME="root")


def _leave(variable: str) -> None:
    """Unset a variable that names somebody else's directory."""
    if variable in os.environ and not _belongs_to_root(Path(os.environ[variable])):
        del os.environ[variable]


def _belongs_to_root(path: Path) -> bool:
    """Whether `path`, or its nearest parent that exists, does."""
    there = next((each for each in (path, *path.parents) if each.exists()), None)
    return there is not None and there.stat().st_uid == 0


def become_user(project: Path) -> str | None:
    """As root on Linux become, for good, sudo's caller or else the project's owner.

    Returns what to tell the user, None when nothing changed. Raises HostSetupError when that user
    cannot read this program.
    """
    entry = user_to_become(project)
    if entry is None:
        if is_root():
            _leave("LIMA_HOME")  # as leave_other_homes: we stay root, whose VMs these are not
        return None
    _check_readable(entry)
    why = "who called sudo" if entry == _caller() else f"who owns {project}"
    _switch_to(entry)
    return f"Going on as {entry.pw_name}, {why}: Lima does not run as root."


def user_to_become(project: Path) -> pwd.struct_passwd | None:
    """Whom `become_user` would take; None when we are not root, or stay it."""
    return (_caller() or _owner(project)) if is_root() else None


def _caller() -> pwd.struct_passwd | None:
    number = os.environ.get("SUDO_UID", "")
    return _person(int(number)) if re.fullmatch("[0-9]{1,9}", number) else None


def _owner(project: Path) -> pwd.struct_passwd | None:
    try:
        return _person(project.stat().st_uid)
    except OSError:
        return None


def _person(uid: int) -> pwd.struct_passwd | None:
    """The passwd entry of someone who owns their home: Lima keeps its VMs there."""
    if uid == 0:
        return None
    try:
        entry = pwd.getpwuid(uid)
        home = os.stat(entry.pw_dir)
    except (KeyError, OSError):
        return None
    return entry if home.st_uid == uid else None


def _check_readable(entry: pwd.struct_passwd) -> None:
    """Python goes on loading its files after the change of user: they must be readable then."""
    needed = (program.PACKAGE, Path(os.__file__).parent, Path(sys.prefix))
    groups, gid = os.getgroups(), os.getegid()
    try:
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setegid(entry.pw_gid)
        os.seteuid(entry.pw_uid)
        hidden = [str(path) for path in needed if not _readable(path)]
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)
    if hidden:
        raise HostSetupError(
            f"You are root and the VM must run as {entry.pw_name}, who cannot read this program.",
            details=", ".join(hidden),
            resolution=f"Start it as {entry.pw_name} without sudo, from a checkout which that user can read.",
        )


def _readable(directory: Path) -> bool:
    try:
        os.listdir(directory)
    except OSError:
        return False
    return True


def _switch_to(entry: pwd.struct_passwd) -> None:
    """Ids and environment, for good."""
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setresgid(*(entry.pw_gid,) * 3)
    os.setresuid(*(entry.pw_uid,) * 3)
    if os.getresuid() != (entry.pw_uid,) * 3 or os.getresgid() != (entry.pw_gid,) * 3:
        raise HostSetupError(f"Could not become {entry.pw_name}.")
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        del os.environ[name]
    os.environ.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name)
    runtime = Path(f"/run/user/{entry.pw_uid}")  # a login of that user would have it
    if runtime.is_dir() and runtime.stat().st_uid == entry.pw_uid:
        os.environ["XDG_RUNTIME_DIR"] = str(runtime)


def namespace_user() -> pwd.struct_passwd | None:
    """The ordinary user whose number root has in the namespace: 1000, else the lowest."""
    people = {entry.pw_uid: entry for entry in pwd.getpwall() if entry.pw_uid in _ORDINARY}
    return people.get(PREFERRED_UID) or (people[min(people)] if people else None)


def add_user_argv() -> tuple[str, ...]:
    """A user without a home or login, for a machine that has root only."""
    return (
        "useradd", "--uid", str(PREFERRED_UID), "--no-create-home", "--shell", "/usr/sbin/nologin",
        NAMESPACE_USER,
    )  # fmt: skip


def limactl_prefix(runner: Runner | None = None) -> tuple[str, ...]:
    """What goes before limactl: nothing, or for root the entry into a user namespace.

    With a runner the namespace is really tried (2 ms). Raises HostSetupError when it cannot be had.
    """
    if not is_root():
        return ()
    entry = namespace_user()
    if entry is None:
        raise HostSetupError(
            "Lima does not run as root, and this machine has no ordinary user whose number it could have.",
            resolution=f"Run `{' '.join(add_user_argv())}`, or `claude-sandbox setup`, which does it.",
        )
    if shutil.which("unshare") is None:
        raise HostSetupError(
            "Lima does not run as root, and `unshare` (util-linux) is missing.",
            resolution="Install util-linux, or start claude-sandbox as an ordinary user.",
        )
    prefix = ("unshare", "--user", f"--map-user={entry.pw_uid}", f"--map-group={entry.pw_gid}")
    _check_namespace(prefix, runner)
    return prefix


def _check_namespace(prefix: tuple[str, ...], runner: Runner | None) -> None:
    details = None
    try:
        if _USERNS_LIMIT.read_text().strip() == "0":
            details = f"{_USERNS_LIMIT} is 0"
    except OSError:
        details = f"{_USERNS_LIMIT} cannot be read: this kernel has no user namespaces"
    if details is None and runner is not None:
        result = runner.run(Command((*prefix, "true")), timeout=10, changes=False)
        details = None if result.ok else result.error_text or f"unshare ended with code {result.returncode}"
    if details is not None:
        raise HostSetupError(
            "Lima does not run as root, and user namespaces are forbidden here.",
            details=details,
            resolution="Start claude-sandbox as an ordinary user; or allow them (sysctl "
            "user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns; in a container, "
            "its seccomp profile).",
        )


def guest_user() -> lima_context.GuestUser:
    """The user that the guest gets: our number, and our name where Linux guests can have it."""
    if is_root():
        entry = namespace_user()
        name, uid = (entry.pw_name, entry.pw_uid) if entry else ("", PREFERRED_UID)
    else:
        name, uid = "", os.getuid()
        with contextlib.suppress(KeyError):
            name = pwd.getpwuid(uid).pw_name
    return lima_context.GuestUser(guest_name(name), uid)


def guest_name(name: str) -> str:
    """As Lima does: a name that useradd would refuse, and "admin", become "lima".

    >>> guest_name("Jane.Doe"), guest_name("jane")
    ('lima', 'jane')
    """
    return name if _GUEST_NAME.fullmatch(name) and name != "admin" else FALLBACK_NAME

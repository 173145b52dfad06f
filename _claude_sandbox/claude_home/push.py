"""Brings a guest's ~/.claude up to date at launch: settings, first-run keys, login, git identity.

Two calls at most: one asks what the guest has, one carries a tar of what differs; when nothing differs, one.
What the guest answers is hostile data: it is only ever compared, merged as JSON and sent back to where it came
from.
"""

from __future__ import annotations

import functools
import hashlib
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from _claude_sandbox.claude_home import guest_state, host_tree, three_way
from _claude_sandbox.claude_home.first_run import (
    KEY_TAIL,
    GitIdentity,
    dump,
    json_state,
    merge_claude_json,
    with_first_run_keys,
)
from _claude_sandbox.claude_home.guest_state import GuestState
from _claude_sandbox.claude_home.host_tree import SETTINGS, HostTree, Warn
from _claude_sandbox.claude_home.three_way import FileState, Manifest, SyncPlan
from _claude_sandbox.credentials.exchange import Collected
from _claude_sandbox.credentials.select import Login
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.hooks import guest_setup as hooks_guest_setup
from _claude_sandbox.lima.ssh import GuestLike, guest_script
from _claude_sandbox.system import files as system_files
from _claude_sandbox.system import jsonio

if TYPE_CHECKING:
    import tarfile

CHANGED_MEANWHILE = 75  # exit code of settings-apply.sh
ATTEMPTS = 3
TIMEOUT = 300.0  # seconds; a first hashing under TCG is slow

Content = bytes | Callable[[], bytes]
Contents = Mapping[str, Content]
"""What a tar carries, by name; files of the host are read when it is made."""


@dataclass(frozen=True)
class UpdateReport:
    """What a launch did. Paths are below ~/.claude in the guest; `kept` are the guest's own changes.

    `saved` were changed on both sides: the guest's copies are in `saved_in` (there too). `hooks`: Claude's
    hooks are in place.
    """

    put: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    saved_in: str = ""
    collected: Collected | None = None
    round_trips: int = 1
    hooks: bool = True


def update_guest(
    guest: GuestLike,
    *,
    tree: HostTree,
    login: Login,
    sandbox: str,
    state_dir: Path,
    identity: GitIdentity | None = None,
    hooks: bool = True,
    warn: Warn = lambda _text: None,
) -> UpdateReport:
    """Make the guest ready for Claude (spec 3.3, 4.13, 5.1-5.3); `hooks`: let it report to the hooks server.

    `tree` is the settings directory as the host has it (claude_home.host_tree.scan). `state_dir` holds the lock
    that keeps two launches of one sandbox apart. Raises ClaudeSandboxError (a setting unreadable, the guest's disk
    full) and GuestConnectionError; trouble with the login is only warned about.
    """
    collected: Collected | None = None
    with system_files.lock(
        files_dir(state_dir) / f"{sandbox}.lock",
        timeout=600,
        on_wait=lambda who: warn(f"Another launch in {sandbox} is under way; waiting for {who} …"),
    ):
        for attempt in range(ATTEMPTS):
            state = guest_state.fetch(guest)
            if state.credential is not None:
                collected = login.collect(state.credential, sandbox, state.account) or collected
            update = plan_update(tree, state, login, sandbox, identity, hooks=hooks, warn=warn)
            hooks_in_place = True if update.is_empty else apply(guest, update)
            if hooks_in_place is not None:
                trips = 2 * attempt + (1 if update.is_empty else 2)
                return update.report(collected, trips, hooks_in_place)
    raise ClaudeSandboxError(
        f"Claude's files in {sandbox} changed each time that they were brought up to date.",
        resolution="Something in the sandbox rewrites ~/.claude.json all the time: end it, then try again.",
    )


def files_dir(state_dir: Path) -> Path:
    """Where this module keeps its locks and caches."""
    path = state_dir / "settings"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def hashes_file(settings_dir: Path, state_dir: Path) -> Path:
    """The cache of this settings directory's hashes, for claude_home.host_tree.scan."""
    tag = hashlib.sha256(str(settings_dir).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return files_dir(state_dir) / f"hashes-{tag}.json"


# -- planning --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GuestUpdate:
    """What is to change in a guest, planned from both sides.

    `conflicts` are the guest's versions of what is merged and cannot be kept: copies of them are left in
    `saved_in`, below ~/.claude there, beside those of `plan.save`.
    """

    tree: HostTree
    state: GuestState
    plan: SyncPlan
    contents: Contents
    conflicts: Mapping[str, bytes]
    saved_in: str

    @property
    def manifest(self) -> bytes:
        """What the guest has been brought when this is applied."""
        return Manifest(self.tree.files, self.tree.mcp_states).encode()

    @property
    def is_empty(self) -> bool:
        work = self.contents or self.plan.remove
        return not work and Manifest.decode(self.manifest) == self.state.base

    def report(self, collected: Collected | None, round_trips: int, hooks: bool) -> UpdateReport:
        plan, saved = self.plan, (*self.plan.save, *self.conflicts)
        where = self.saved_in if saved else ""
        return UpdateReport(plan.put, plan.remove, plan.keep, saved, where, collected, round_trips, hooks)


def plan_update(
    tree: HostTree,
    state: GuestState,
    login: Login,
    sandbox: str,
    identity: GitIdentity | None,
    *,
    hooks: bool,
    warn: Warn,
) -> GuestUpdate:
    """What differs. The login's part counts as handed over from here on (`Login.bring`)."""
    plan = three_way.plan_sync(state.base.files, tree.files, state.files)
    contents: dict[str, Content] = {
        f"files/{path}": functools.partial(_read, tree.sources[path]) for path in plan.put if path != SETTINGS
    }
    contents |= _settings(plan, tree, state)
    claude_json, conflicts = _claude_json(tree, state, login, warn)
    credential = login.bring(state.credential, sandbox, state.account)
    contents |= claude_json
    contents |= {} if credential is None else {"credentials.json": credential}
    contents |= _git(identity, state)
    contents |= _hooks(state) if hooks else {}
    # A removed settings.json shrinks to the first-run keys.
    plan = replace(plan, remove=tuple(path for path in plan.remove if path != SETTINGS))
    saved_in = f"{three_way.SAVED}/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    return GuestUpdate(tree, state, plan, contents, conflicts, saved_in)


def _settings(plan: SyncPlan, tree: HostTree, state: GuestState) -> Contents:
    """The winner's settings.json with the first-run keys; a removed one shrinks to those."""
    source = state.settings
    if SETTINGS in plan.put:
        source = _read(tree.sources[SETTINGS])
    elif SETTINGS in plan.remove:
        source = None
    raw = with_first_run_keys(source)
    return {f"files/{SETTINGS}": raw} if raw != state.settings else {}


def _claude_json(
    tree: HostTree, state: GuestState, login: Login, warn: Warn
) -> tuple[Contents, dict[str, bytes]]:
    """~/.claude.json, merged with what the host wants in it; and what of the guest's that replaces."""
    if state.claude_json_cut:
        warn("~/.claude.json in the sandbox is too large to be looked at: left as it is.")
        return {}, {}
    conflicts = {}
    current = jsonio.parse_object(state.claude_json)
    if current is None and state.claude_json is not None:
        conflicts["claude.json"] = state.claude_json
        warn("~/.claude.json in the sandbox was not a JSON object: set aside and made again.")
    key = login.environment().get("ANTHROPIC_API_KEY")
    merged = merge_claude_json(current or {}, key_tail=key.value[-KEY_TAIL:] if key else None)
    servers = host_tree.mcp_servers(merged)
    there = {name: json_state(value) for name, value in servers.items()}
    plan = three_way.plan_sync(state.base.mcp, tree.mcp_states, there)
    if plan.save:
        conflicts["mcpServers.json"] = dump({name: servers[name] for name in plan.save})
    if plan.put or plan.remove:
        old = merged.get("mcpServers")
        rest = {k: v for k, v in (old if isinstance(old, dict) else {}).items() if k not in plan.remove}
        merged["mcpServers"] = rest | {name: tree.mcp[name] for name in plan.put}
    return ({"claude.json": dump(merged)} if merged != current else {}), conflicts


def _git(identity: GitIdentity | None, state: GuestState) -> Contents:
    """The host user's name and address, where the guest has none."""
    values = {key: getattr(identity, key, "") for key in ("name", "email")}
    return {
        f"git.{key}": value.encode()
        for key, value in values.items()
        if value and f"user.{key}" not in state.git_keys
    }


def _hooks(state: GuestState) -> Contents:
    """What makes Claude report to the hooks server, if it is not there as it should be."""
    wanted = hooks_guest_setup.files()
    if state.managed == wanted:
        return {}
    script = guest_script("hooks-setup.sh").encode()
    return {f"root{path}": raw for path, raw in wanted.items()} | {"hooks-setup.sh": script}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ClaudeSandboxError(
            f"Cannot read {path}: {error.strerror}.", resolution="It changed just now? Then try again."
        ) from error


# -- applying --------------------------------------------------------------------------------------


def apply(guest: GuestLike, update: GuestUpdate) -> bool | None:
    """Whether Claude's hooks are in place after it; None when the guest's files changed since they were fetched.

    Raises ClaudeSandboxError, GuestConnectionError.
    """
    result = guest.run(
        guest_script("settings-apply.sh"), update.saved_in, input=_tar(update), timeout=TIMEOUT
    )
    if result.returncode == CHANGED_MEANWHILE:
        return None
    if not result.ok:
        raise ClaudeSandboxError(
            "Claude's settings could not be brought into the sandbox.",
            details=result.error_text[-500:] or f"exit code {result.returncode}",
            resolution="Its disk may be full: look with `claude-sandbox shell -- df -h`. "
            "The next launch repeats it as a whole.",
        )
    return b"hooks-failed" not in result.stdout


def _tar(update: GuestUpdate) -> bytes:
    """Files to place, lists, and `complete` at the end: a tar cut off between members looks whole."""
    buffer = io.BytesIO()
    lists = {"save": update.plan.save, "remove": update.plan.remove, "empty": _emptied(update.plan)}
    import tarfile

    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.GNU_FORMAT) as archive:
        for name, content in update.contents.items():
            path = name.removeprefix("files/")
            state = update.tree.files.get(path) if name != path else None
            _add(archive, name, content if isinstance(content, bytes) else content(), state)
        _add(archive, "manifest.json", update.manifest)
        for name, copy in update.conflicts.items():
            _add(archive, f"aside/{name}", copy)
        _add(archive, "expect", _expected(update))
        for name, lines in lists.items():
            _add(archive, name, "".join(f"{line}\n" for line in lines).encode())
        _add(archive, "complete", b"")
    return buffer.getvalue()


def _expected(update: GuestUpdate) -> bytes:
    """What was merged must not have changed since: `sha256 path below HOME`, `-` for missing."""
    merged = {
        ".claude.json": (update.state.claude_json, "claude.json"),
        f".claude/{SETTINGS}": (update.state.settings, f"files/{SETTINGS}"),
        ".claude/.credentials.json": (update.state.credential, "credentials.json"),
    }
    return "".join(
        f"{hashlib.sha256(raw).hexdigest() if raw is not None else '-'} {path}\n"
        for path, (raw, name) in merged.items()
        if name in update.contents
    ).encode()


def _emptied(plan: SyncPlan) -> list[str]:
    """Directories that the removals may have left empty, the deepest first."""
    parents = {
        "/".join(parts[:depth])
        for parts in (path.split("/") for path in plan.remove)
        for depth in range(1, len(parts))
    }
    return sorted(parents, key=lambda path: -path.count("/"))


def _add(archive: tarfile.TarFile, name: str, content: bytes, state: FileState | None = None) -> None:
    import tarfile

    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mtime = int(time.time())
    member.mode = 0o700 if state is not None and state.executable else 0o600
    archive.addfile(member, io.BytesIO(content))

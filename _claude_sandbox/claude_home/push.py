"""Brings a guest's ~/.claude up to date at launch: settings, first-run keys, login, git identity.

Two calls at most: one asks what stands in the guest, one carries a tar of what differs; when nothing
differs, one. What the guest answers is hostile data: bounded, parsed, and only ever compared, merged
as JSON and sent back to where it came from.
"""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from _claude_sandbox.claude_home import host_tree, three_way
from _claude_sandbox.claude_home.first_run import (
    KEY_TAIL,
    GitIdentity,
    dump,
    json_state,
    merge_claude_json,
    settings_state,
    with_first_run_keys,
)
from _claude_sandbox.claude_home.host_tree import SETTINGS, HostTree, Warn
from _claude_sandbox.claude_home.three_way import FileState, Manifest, Plan
from _claude_sandbox.credentials import stores as credentials_stores
from _claude_sandbox.credentials.exchange import Collected
from _claude_sandbox.credentials.select import Login
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.hooks import guest_setup as hooks_guest_setup
from _claude_sandbox.lima.ssh import GuestLike, guest_script
from _claude_sandbox.system import files as system_files
from _claude_sandbox.system import jsonio
from _claude_sandbox.system.quoting import shell_quote

CHANGED_MEANWHILE = 75  # exit code of settings-apply.sh
ATTEMPTS = 3
FETCH_TIMEOUT, APPLY_TIMEOUT = 120.0, 300.0  # seconds; a first hashing under TCG is slow
_ANSWER = {
    ".claude-sandbox/manifest.json": "manifest",
    ".claude-sandbox/hashes": "hashes",
    ".claude-sandbox/git": "git",
    ".claude/settings.json": "settings",
    ".claude/.credentials.json": "credential",
    ".claude.json": "claude_json",
}


@dataclass(frozen=True)
class Seen:
    """What the guest says that it has. The raw files are None when they are missing.

    `claude_json_cut`: ~/.claude.json is there and too large to be carried. `managed` as hooks.guest_setup.files.
    """

    base: Manifest
    files: Mapping[str, FileState]
    settings: bytes | None
    claude_json: bytes | None
    claude_json_cut: bool
    git_keys: frozenset[str]
    credential: bytes | None = field(default=None, repr=False)
    managed: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def account(self) -> str:
        """The account that the guest says its login belongs to; empty when it says none."""
        return credentials_stores.account_of(self.claude_json)


@dataclass(frozen=True)
class PrepareReport:
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


def prepare(
    guest: GuestLike,
    *,
    tree: HostTree,
    login: Login,
    sandbox: str,
    state_dir: Path,
    identity: GitIdentity | None = None,
    hooks: bool = True,
    warn: Warn = lambda _text: None,
) -> PrepareReport:
    """Make the guest ready for Claude (spec 3.3, 4.13, 5.1-5.3); `hooks`: let it tell of itself.

    `tree` is the settings directory as the host has it (claude_home.host_tree.scan). `state_dir` holds the lock that keeps
    two launches of one sandbox apart. Raises ClaudeSandboxError (a setting unreadable, the guest's disk full)
    and GuestConnectionError; trouble with the login is only warned about.
    """
    directory = files_dir(state_dir)
    collected: Collected | None = None
    with system_files.lock(
        directory / f"{sandbox}.lock",
        timeout=600,
        on_wait=lambda who: warn(f"Another launch in {sandbox} is under way; waiting for {who} …"),
    ):
        for attempt in range(ATTEMPTS):
            seen = fetch(guest)
            if seen.credential is not None:
                collected = login.collect(seen.credential, sandbox, seen.account) or collected
            push = _Push(tree, seen, login, sandbox, identity, hooks, warn)
            if push.is_empty or push.send(guest):
                trips = 2 * attempt + (1 if push.is_empty else 2)
                return push.report(collected, trips)
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


def fetch(guest: GuestLike) -> Seen:
    """Ask the guest what it has. Raises ClaudeSandboxError when the answer makes no sense."""
    nested = " -o ".join(f"-path ./{path}" for path in three_way.NESTED_EXCLUDED)
    script = guest_script("settings-fetch.sh").replace("EXCLUDED)", "|".join(three_way.EXCLUDED) + ")", 1)
    script = script.replace("NESTED", rf"\( {nested} \) -prune -o")
    wanted = {path: path.lstrip("/") for path in hooks_guest_setup.files()}  # tar leaves out the slash
    script = script.replace("MANAGED;", f"{shell_quote([*wanted])};", 1)
    result = guest.run(script, timeout=FETCH_TIMEOUT)
    found, cut = read_tar(result.stdout, {*_ANSWER, *wanted.values()})
    if ".claude-sandbox/hashes" not in found:
        raise ClaudeSandboxError(
            "The sandbox did not answer what is in its ~/.claude.",
            details=result.error_text[-500:] or f"exit code {result.returncode}",
            resolution="Its disk may be full, or tar, find or sha256sum missing there: "
            "look with `claude-sandbox shell -- df -h`.",
        )
    answer = {name: found.get(path) for path, name in _ANSWER.items()}
    states = three_way.parse_hashes(answer["hashes"] or b"")
    states.pop(SETTINGS, None)
    meaning = settings_state(answer["settings"])
    if meaning is not None:
        states[SETTINGS] = meaning
    keys = {line.split(b" ", 1)[0].decode("ascii", "replace") for line in (answer["git"] or b"").splitlines()}
    return Seen(
        base=Manifest.decode(answer["manifest"]),
        files=states,
        settings=answer["settings"],
        claude_json=answer["claude_json"],
        claude_json_cut=cut,
        git_keys=frozenset(keys),
        credential=answer["credential"],
        managed={path: found[name] for path, name in wanted.items() if name in found},
    )


def read_tar(raw: bytes, expected: Collection[str]) -> tuple[dict[str, bytes], bool]:
    """The expected regular files of a hostile tar, and whether it was cut off.

    Sparse members are refused: their size is a claim (gigabytes of zeros in a few bytes of tar).
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name not in expected or not member.isreg() or member.issparse() or member.size > len(raw):
                    continue
                file = archive.extractfile(member)
                content = file.read() if file else b""
                if len(content) != member.size:
                    return found, True
                found[name] = content
    except (tarfile.TarError, ValueError, EOFError, OSError, OverflowError):
        return found, bool(raw)
    return found, False


class _Push:
    """What differs, worked out from both sides, and the tar that carries it."""

    def __init__(
        self,
        tree: HostTree,
        seen: Seen,
        login: Login,
        sandbox: str,
        identity: GitIdentity | None,
        hooks: bool,
        warn: Warn,
    ) -> None:
        self.tree, self.seen, self.warn = tree, seen, warn
        self.plan: Plan = three_way.plan(seen.base.files, tree.files, seen.files)
        self.stamp = f"{three_way.SAVED}/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        self.hooks = True
        self.aside: dict[str, bytes] = {}
        self.contents: dict[str, bytes | Callable[[], bytes]] = {}
        self._files()
        self._settings()
        self._claude_json(login)
        self._credential(login, sandbox)
        self._git(identity)
        if hooks:
            self._hooks()
        after = Manifest(tree.files, tree.mcp_states).encode()
        has_work = bool(self.contents or self.plan.remove)
        self.is_empty = not has_work and Manifest.decode(after) == seen.base
        self.contents["manifest.json"] = after

    def report(self, collected: Collected | None, round_trips: int) -> PrepareReport:
        saved = (*self.plan.save, *self.aside)
        plan = self.plan
        where = self.stamp if saved else ""
        return PrepareReport(
            plan.put, plan.remove, plan.keep, saved, where, collected, round_trips, self.hooks
        )

    def send(self, guest: GuestLike) -> bool:
        """False when the guest's files changed since `fetch`. Raises ClaudeSandboxError."""
        result = guest.run(
            guest_script("settings-apply.sh"), self.stamp, input=self.tar(), timeout=APPLY_TIMEOUT
        )
        if result.returncode == CHANGED_MEANWHILE:
            return False
        if not result.ok:
            raise ClaudeSandboxError(
                "Claude's settings could not be brought into the sandbox.",
                details=result.error_text[-500:] or f"exit code {result.returncode}",
                resolution="Its disk may be full: look with `claude-sandbox shell -- df -h`. "
                "The next launch repeats it as a whole.",
            )
        self.hooks = b"hooks-failed" not in result.stdout
        return True

    def tar(self) -> bytes:
        """Files to place, lists, and `complete` at the end: a tar cut off between members looks whole."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.GNU_FORMAT) as archive:
            for name, content in self.contents.items():
                path = name.removeprefix("files/")
                state = self.tree.files.get(path) if name != path else None
                _add(archive, name, content if isinstance(content, bytes) else content(), state)
            for name, content in self.aside.items():
                _add(archive, f"aside/{name}", content)
            _add(archive, "expect", self._expect())
            for name, lines in (
                ("save", self.plan.save),
                ("remove", self.plan.remove),
                ("empty", self._empty()),
            ):
                _add(archive, name, "".join(f"{line}\n" for line in lines).encode())
            _add(archive, "complete", b"")
        return buffer.getvalue()

    # -- what goes into it -----------------------------------------------------------------------

    def _files(self) -> None:
        for path in self.plan.put:
            if path != SETTINGS:
                self.contents[f"files/{path}"] = functools.partial(_read, self.tree.sources[path])

    def _settings(self) -> None:
        """The winner's settings.json with the first-run keys; a removed one shrinks to those."""
        source = self.seen.settings
        if SETTINGS in self.plan.put:
            source = _read(self.tree.sources[SETTINGS])
        elif SETTINGS in self.plan.remove:
            source = None
            self.plan = _without(self.plan, SETTINGS)
        raw = with_first_run_keys(source)
        if raw != self.seen.settings:
            self.contents[f"files/{SETTINGS}"] = raw

    def _claude_json(self, login: Login) -> None:
        if self.seen.claude_json_cut:
            self.warn("~/.claude.json in the sandbox is too large to be looked at: left as it is.")
            return
        current = jsonio.parse_object(self.seen.claude_json)
        if current is None and self.seen.claude_json is not None:
            self.aside["claude.json"] = self.seen.claude_json
            self.warn("~/.claude.json in the sandbox was no JSON object: set aside and made anew.")
        key = login.environment().get("ANTHROPIC_API_KEY")
        merged = merge_claude_json(current or {}, key_tail=key.value[-KEY_TAIL:] if key else None)
        servers = host_tree.mcp_servers(merged)
        there = {name: json_state(value) for name, value in servers.items()}
        plan = three_way.plan(self.seen.base.mcp, self.tree.mcp_states, there)
        if plan.save:
            self.aside["mcpServers.json"] = dump({name: servers[name] for name in plan.save})
        if plan.put or plan.remove:
            old = merged.get("mcpServers")
            rest = {k: v for k, v in (old if isinstance(old, dict) else {}).items() if k not in plan.remove}
            merged["mcpServers"] = rest | {name: self.tree.mcp[name] for name in plan.put}
        if merged != current:
            self.contents["claude.json"] = dump(merged)

    def _credential(self, login: Login, sandbox: str) -> None:
        content = login.bring(self.seen.credential, sandbox, self.seen.account)
        if content is not None:
            self.contents["credentials.json"] = content

    def _git(self, identity: GitIdentity | None) -> None:
        for key in ("name", "email"):
            value = getattr(identity, key) if identity else ""
            if value and f"user.{key}" not in self.seen.git_keys:
                self.contents[f"git.{key}"] = value.encode()

    def _hooks(self) -> None:
        """What makes Claude tell of itself, if it is not there as it should be."""
        wanted = hooks_guest_setup.files()
        if self.seen.managed != wanted:
            self.contents |= {f"root{path}": raw for path, raw in wanted.items()}
            self.contents["hooks-setup.sh"] = guest_script("hooks-setup.sh").encode()

    def _expect(self) -> bytes:
        """What was merged must not have changed since: `sha256 path below HOME`, `-` for missing."""
        seen = {
            ".claude.json": (self.seen.claude_json, "claude.json"),
            f".claude/{SETTINGS}": (self.seen.settings, f"files/{SETTINGS}"),
            ".claude/.credentials.json": (self.seen.credential, "credentials.json"),
        }
        return "".join(
            f"{hashlib.sha256(raw).hexdigest() if raw is not None else '-'} {path}\n"
            for path, (raw, name) in seen.items()
            if name in self.contents
        ).encode()

    def _empty(self) -> list[str]:
        """Directories that the removals may have left empty, the deepest first."""
        parents = {
            "/".join(parts[:depth])
            for parts in (path.split("/") for path in self.plan.remove)
            for depth in range(1, len(parts))
        }
        return sorted(parents, key=lambda path: -path.count("/"))


def _without(plan: Plan, path: str) -> Plan:
    return Plan(plan.put, tuple(p for p in plan.remove if p != path), plan.save, plan.keep)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ClaudeSandboxError(
            f"Cannot read {path}: {error.strerror}.", resolution="It changed just now? Then try again."
        ) from error


def _add(archive: tarfile.TarFile, name: str, content: bytes, state: FileState | None = None) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mtime = int(time.time())
    member.mode = 0o700 if state is not None and state.executable else 0o600
    archive.addfile(member, io.BytesIO(content))

"""What a guest says that it has in its home: asked in one call, bounded and parsed before anything uses it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from _claude_sandbox.claude_home import three_way
from _claude_sandbox.claude_home.first_run import settings_state
from _claude_sandbox.claude_home.host_tree import SETTINGS
from _claude_sandbox.claude_home.three_way import FileState, Manifest
from _claude_sandbox.credentials import stores as credentials_stores
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.hooks import guest_setup as hooks_guest_setup
from _claude_sandbox.lima.ssh import GuestLike, guest_script
from _claude_sandbox.system.quoting import shell_quote

TIMEOUT = 120.0  # seconds; a first hashing under TCG is slow
_STATE = ".claude-sandbox/"
_MANIFEST, _HASHES, _GIT = f"{_STATE}manifest.json", f"{_STATE}hashes", f"{_STATE}git"
_SETTINGS, _CREDENTIAL, _CLAUDE_JSON = ".claude/settings.json", ".claude/.credentials.json", ".claude.json"
_ANSWER = {_MANIFEST, _HASHES, _GIT, _SETTINGS, _CREDENTIAL, _CLAUDE_JSON}


@dataclass(frozen=True)
class GuestState:
    """`base` is what was brought last. The raw files are None when they are missing.

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


def fetch(guest: GuestLike) -> GuestState:
    """Ask the guest. Raises ClaudeSandboxError when the answer makes no sense."""
    managed = {path: path.lstrip("/") for path in hooks_guest_setup.files()}  # tar leaves out the slash
    result = guest.run(_script([*managed]), timeout=TIMEOUT)
    found, cut = read_tar(result.stdout, {*_ANSWER, *managed.values()})
    if _HASHES not in found:
        raise ClaudeSandboxError(
            "The sandbox did not answer what is in its ~/.claude.",
            details=result.error_text[-500:] or f"exit code {result.returncode}",
            resolution="Its disk may be full, or tar, find or sha256sum missing there: "
            "look with `claude-sandbox shell -- df -h`.",
        )
    git_keys = (
        line.split(b" ", 1)[0].decode("ascii", "replace") for line in found.get(_GIT, b"").splitlines()
    )
    return GuestState(
        base=Manifest.decode(found.get(_MANIFEST)),
        files=_states(found[_HASHES], found.get(_SETTINGS)),
        settings=found.get(_SETTINGS),
        claude_json=found.get(_CLAUDE_JSON),
        claude_json_cut=cut,
        git_keys=frozenset(git_keys),
        credential=found.get(_CREDENTIAL),
        managed={path: found[name] for path, name in managed.items() if name in found},
    )


def _script(managed: Collection[str]) -> str:
    nested = " -o ".join(f"-path ./{path}" for path in three_way.NESTED_EXCLUDED)
    script = guest_script("settings-fetch.sh").replace("EXCLUDED)", "|".join(three_way.EXCLUDED) + ")", 1)
    script = script.replace("NESTED", rf"\( {nested} \) -prune -o")
    return script.replace("MANAGED;", f"{shell_quote([*managed])};", 1)


def _states(hashes: bytes, settings: bytes | None) -> dict[str, FileState]:
    """The guest's files; settings.json by its meaning."""
    states = three_way.parse_hashes(hashes)
    states.pop(SETTINGS, None)
    meaning = settings_state(settings)
    return states if meaning is None else {**states, SETTINGS: meaning}


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

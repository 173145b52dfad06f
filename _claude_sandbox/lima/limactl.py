"""limactl: argv, parsing, and Lima's errors in plain words.

Nothing here knows what a sandbox is. What was learnt about Lima is in docs/facts/lima.md; the habits:
always `--tty=false`, always a time limit, `list` by our own template (its `--format json` breaks at
64 KiB), and a status read from files where a wrong guess does no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _claude_sandbox.errors import LimaError
from _claude_sandbox.system.files import listens
from _claude_sandbox.system.jsonio import parse_object
from _claude_sandbox.system.run import TIMED_OUT, Command, Result, Runner
from _claude_sandbox.system.units import parse_size

RUNNING, STOPPED, BROKEN = "Running", "Stopped", "Broken"
UNREADABLE = "Unreadable"  # Lima's own status is "" when it cannot read the instance's lima.yaml

QUESTION_TIMEOUT = 30.0  # seconds; `list` asks each host agent for at most 3 s, one after the other
CLONE_TIMEOUT = 1800.0
CREATE_TIMEOUT = 3600.0  # a cloud image is 600 MB
STOP_TIMEOUT = 240.0  # a graceful stop gives the guest 3 min 10 s
START_TIMEOUT = 1800.0

# One JSON array a line. Lima's Go names (pkg/limatype/lima_instance.go).
_FIELDS = (
    "Name", "Status", "Dir", "SSHLocalPort", "SSHConfigFile", "CPUs", "Memory", "Disk", "Protected",
    "Param", "VMType", "LimaVersion",
)  # fmt: skip
_INT, _STR = int | None, str | None
LIST_FORMAT = "[" + ",".join("{{json .%s}}" % name for name in _FIELDS) + "]"  # noqa: UP031


@dataclass(frozen=True)
class Instance:
    """One Lima VM as `limactl list` sees it. `memory` and `disk` in bytes."""

    name: str
    status: str
    dir: Path
    ssh_port: int = 0
    cpus: int = 0
    memory: int = 0
    disk: int = 0
    protected: bool = False
    vm_type: str = ""
    lima_version: str = ""
    param: Mapping[str, str] = field(default_factory=dict)

    @property
    def ssh_config(self) -> Path:
        return self.dir / "ssh.config"

    @property
    def ssh_host(self) -> str:
        return f"lima-{self.name}"

    @property
    def tag(self) -> str:
        """A short name for our sockets and files of this instance: LIMA_HOME counts, not the name alone."""
        return tag(self.dir)


class Lima:
    """limactl. `prefix` goes before it (a user namespace), `env` holds changes of its environment."""

    def __init__(
        self,
        runner: Runner,
        home: Path,
        *,
        executable: str = "limactl",
        prefix: Sequence[str] = (),
        env: Mapping[str, str | None] | None = None,
    ) -> None:
        self.runner = runner
        self.home = home
        self.executable = executable
        self.prefix = tuple(prefix)
        self.env: dict[str, str | None] = {"LIMA_HOME": str(home), **(env or {})}

    # -- argv ------------------------------------------------------------------------------------

    def command(self, *arguments: str) -> Command:
        return Command((*self.prefix, self.executable, *arguments), self.env)

    # -- questions -------------------------------------------------------------------------------

    def version(self) -> tuple[int, ...] | None:
        """None when it does not know (a Go build says "<unknown>"). Raises LimaError."""
        return parse_version(self._ask("--version").text)

    def list(self, *names: str) -> list[Instance]:
        """All instances, or those named that exist. Raises LimaError."""
        # A named instance that is unknown makes the exit code 1 with the others still printed.
        result = self._ask("list", "--format", LIST_FORMAT, *names, codes=(0, 1) if names else (0,))
        if result.returncode == 1 and "unmatched instances" not in result.error_text:
            raise self._failed("list", result)
        return [parse_instance(line) for line in result.text.splitlines() if line.strip()]

    def get(self, name: str) -> Instance | None:
        """One instance; Lima is not asked when its directory is not there."""
        return next(iter(self.list(name)), None) if (self.home / name).exists() else None

    def config(self, name: str) -> dict[str, Any]:
        """The effective config: lima.yaml with Lima's defaults, default.yaml and override.yaml."""
        result = self._ask("list", "--format", "{{json .Config}}", name)
        value = parse_object(result.stdout)
        if value is None:
            raise LimaError("limactl list answered something unreadable.", details=result.text[:200])
        return value

    def template(self, locator: str) -> dict[str, Any]:
        """A template (file or `template:` name) with its bases merged in, as a YAML document."""
        import yaml

        result = self._ask("template", "copy", "--embed-all", locator, "-", codes=(0, 1), timeout=120)
        # level=fatal msg="template `default.yaml` not found"
        if result.returncode == 1 and re.search(r"template .* not found", result.error_text):
            raise LimaError(
                f"This Lima has no {locator}.",
                details="A Lima that was built with Go brings no templates.",
                resolution="Build the tools VM (`claude-sandbox rebuild-tools-vm`), or give a file: `-t FILE.yaml`.",
            )
        if result.returncode == 1:
            raise self._failed("template", result)
        try:
            document = yaml.safe_load(result.text)
        except yaml.YAMLError as error:
            raise LimaError(f"Lima gave no readable template for {locator}.", details=str(error)) from error
        if not isinstance(document, dict):
            raise LimaError(
                f"{locator} is not a Lima template.", resolution="See `limactl create --list-templates`."
            )
        return document

    def read_instance_files(self, name: str) -> Instance | None:
        """The instance from its files alone (no limactl): for what a wrong guess does not harm.

        Status is RUNNING when both processes live and the host agent listens on its socket (pid files of
        a host that went down may name other processes by now), STOPPED when there is no pid file, else
        BROKEN. Sizes are 0 where lima.yaml does not say them; `ssh_port`, `vm_type`, `lima_version` and
        `protected` are not set. None without a lima.yaml.
        """
        directory = self.home / name
        try:
            text = (directory / "lima.yaml").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
        if alive(directory) and listens(directory / "ha.sock") and (directory / "ssh.config").exists():
            status = RUNNING
        else:
            status = BROKEN if any(directory.glob("*.pid")) else STOPPED
        cpus, memory, disk = sizes_of(text)
        return Instance(name, status, directory, cpus=cpus, memory=memory, disk=disk, param=param_of(text))

    # -- changes ---------------------------------------------------------------------------------

    def clone(self, base: str, name: str, *, on_start: Callable[[int], None] | None = None) -> None:
        """Copy a stopped instance. On failure the half-made copy is the caller's to remove."""
        self._change("clone", base, name, timeout=CLONE_TIMEOUT, on_start=on_start)

    def create(self, name: str, document: Path, *, on_start: Callable[[int], None] | None = None) -> None:
        """Make an instance from a YAML file; Lima downloads or copies the image here."""
        self._change("create", f"--name={name}", str(document), timeout=CREATE_TIMEOUT, on_start=on_start)

    def start(
        self,
        name: str,
        *,
        timeout: float = START_TIMEOUT,
        env: Mapping[str, str | None] | None = None,
        on_line: Callable[[str], None] | None = None,
        logfile: Path | None = None,
        on_start: Callable[[int], None] | None = None,
        give_up: Callable[[], bool] | None = None,
    ) -> Result:
        """Start and wait until the guest is ready. Returns the result: failure has shades.

        A "degraded" VM is up (docs/facts/lima.md §3), so the caller decides. `give_up` (Runner.stream) ends limactl, and
        not yet the VM.
        """
        command = self.command("start", "--tty=false", f"--timeout={int(timeout)}s", name)
        command = Command(command.argv, {**command.env, **(env or {})})
        return self.runner.stream(
            command,
            timeout=timeout + 60,
            on_line=on_line,
            logfile=logfile,
            on_start=on_start,
            give_up=give_up,
        )

    def stop(self, name: str, *, force: bool = False) -> None:
        self._change("stop", *(["--force"] if force else []), name, timeout=STOP_TIMEOUT)

    def delete(self, name: str, *, force: bool = True) -> None:
        self._change("delete", *(["--force"] if force else []), name, timeout=120)

    def protect(self, name: str) -> None:
        self._change("protect", name)

    def unprotect(self, name: str) -> None:
        self._change("unprotect", name)

    # -- inside ----------------------------------------------------------------------------------

    def _ask(self, *arguments: str, codes: Sequence[int] = (0,), timeout: float = QUESTION_TIMEOUT) -> Result:
        result = self.runner.run(self.command(*arguments), timeout=timeout, changes=False)
        if result.returncode not in codes:
            raise self._failed(arguments[0], result)
        return result

    def _change(
        self, verb: str, *arguments: str, timeout: float = QUESTION_TIMEOUT,
        on_start: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        command = self.command(verb, "--tty=false", *arguments)
        result = self.runner.stream(command, timeout=timeout, on_start=on_start)
        if not result.ok:
            raise self._failed(verb, result)

    def _failed(self, verb: str, result: Result) -> LimaError:
        if result.returncode == TIMED_OUT:
            return LimaError(
                f"limactl {verb} did not answer.",
                details=result.error_text,
                resolution="Another limactl may hang (look with `ps`); `claude-sandbox doctor` checks this host.",
            )
        return LimaError(f"limactl {verb} failed.", details=reword(result.error_text))


def parse_version(text: str) -> tuple[int, ...] | None:
    """`limactl version 2.2.0` -> (2, 2, 0); a pre-release or commit suffix is ignored."""
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in match.groups()) if match else None


def parse_instance(line: str) -> Instance:
    """One line of LIST_FORMAT, e.g. `["app","Running","/home/me/.lima/app",60022,…]`."""
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, list) or not _typed(value):
        raise LimaError(
            "limactl list answered something unreadable.",
            details=line[:200],
            resolution="Run `limactl list` yourself; `claude-sandbox doctor` checks Lima's version.",
        )
    name, status, directory, port, _, cpus, memory, disk, protected, param, vm_type, version = value
    where = Path(directory)
    if not status:  # Lima could not read lima.yaml and left param out too: read the mark ourselves
        with contextlib.suppress(OSError):
            param = param_of((where / "lima.yaml").read_text(encoding="utf-8", errors="surrogateescape"))
    return Instance(
        name, status or UNREADABLE, where, port or 0, cpus or 0, memory or 0, disk or 0,
        bool(protected), vm_type or "", version or "", param or {},
    )  # fmt: skip


def _typed(value: list[Any]) -> bool:
    """Whether there are as many fields as asked for, with Lima's types (null for what it does not know)."""
    if len(value) != len(_FIELDS):
        return False
    kinds = (str, str, str, _INT, _STR, _INT, _INT, _INT, bool | None, dict | None, _STR, _STR)
    known = all(isinstance(item, kind) for item, kind in zip(value, kinds, strict=True))
    return known and all(isinstance(text, str) for text in (value[_FIELDS.index("Param")] or {}).values())


def param_of(text: str) -> dict[str, str]:
    """The plain values below `param:` of a lima.yaml, by their lines: no YAML parser on the fast path."""
    block = re.search(r"^param:\n((?:[ ]+[^\n]*\n?)*)", text, re.MULTILINE)
    pairs = re.findall(r"""^ +(\w+): *["']?([^"'\n]*?)["']? *$""", block[1] if block else "", re.MULTILINE)
    return dict(pairs)


def sizes_of(text: str) -> tuple[int, int, int]:
    """CPUs, memory and disk (bytes) of a lima.yaml by their lines; 0 for what it does not say."""
    found = dict(re.findall(r"""^(cpus|memory|disk): *["']?([^"'\n#]+?)["']? *$""", text, re.MULTILINE))
    try:
        sizes = [parse_size(found[key], 1) if key in found else 0 for key in ("memory", "disk")]
        return int(found.get("cpus", 0)), sizes[0], sizes[1]
    except ValueError:
        return 0, 0, 0


# logrus quotes a message when it has to: `msg="two words"`, `msg=one`, with Go's escapes.
_LEVEL = re.compile(r'^time="[^"]*" level=(\w+) msg=(?:"((?:[^"\\]|\\.)*)"|(\S*))(.*)$')
_ESCAPES = {"n": "\n", "t": "  ", "r": ""}


def reword(text: str, lines: int = 6) -> str:
    """The last warnings and errors of limactl's log, without its decoration.

    >>> reword('time="2026-11-21T13:00:00Z" level=fatal msg="instance \\\\"x\\\\" not found"')
    'instance "x" not found'
    """
    out: list[str] = []
    for line in text.splitlines():
        match = _LEVEL.match(line)
        if match is None:
            out.append(line)
        elif match[1] in ("warning", "error", "fatal", "panic"):
            message = re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), match[2] or match[3] or "")
            out += (message + match[4]).splitlines()
    return "\n".join(out[-lines:])


def tag(directory: Path) -> str:
    """Of an instance directory: 12 hexadecimal digits, the same through whatever symlink it is reached."""
    return tag_as_written(Path(os.path.realpath(directory)))


def tag_as_written(directory: Path) -> str:
    """As older versions made it."""
    import hashlib

    return hashlib.sha256(os.fsencode(directory)).hexdigest()[:12]


def alive(directory: Path) -> bool:
    """Whether both processes of an instance's pid files live: two small files, no socket. After a crash of
    the host they may name other processes."""
    return _alive(directory / "ha.pid") and (_alive(directory / "qemu.pid") or _alive(directory / "vz.pid"))


def _alive(pidfile: Path) -> bool:
    try:
        os.kill(int(pidfile.read_text()), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True

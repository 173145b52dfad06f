"""Makes the launcher's environment: `python -I host/python_env.py VENV LOCKFILE [--yes]`, once per lock file.

Run by any Python 3.11 with nothing but the standard library. uv does it where it is and can; else
venv and pip, with the hashes of the lock file either way. Two first runs wait for each other, and an
environment counts only once its `.complete` is written.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from _claude_sandbox.errors import Cancelled, ClaudeSandboxError, HostSetupError
from _claude_sandbox.system.files import lock, write_atomic
from _claude_sandbox.system.run import Command, LocalRunner, Runner

STAMP = ".complete"
BUILD_TIMEOUT = 900.0  # seconds


def main(argv: list[str]) -> int:
    venv, requirements = Path(argv[0]), Path(argv[1])
    try:
        make(LocalRunner(), venv, requirements, yes="--yes" in argv[2:])
    except ClaudeSandboxError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"Error: cannot make {venv}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def make(runner: Runner, venv: Path, requirements: Path, *, yes: bool) -> None:
    """Nothing when it is there already. Raises HostSetupError, Cancelled, OSError."""

    def waiting(who: str) -> None:
        print(f"Another claude-sandbox prepares the environment; waiting for {who}.", file=sys.stderr)

    venv.parent.mkdir(parents=True, exist_ok=True)
    with lock(venv.with_name(venv.name + ".lock"), on_wait=waiting):
        if (venv / STAMP).exists() and os.access(venv / "bin" / "python", os.X_OK):
            return
        print(f"Preparing claude-sandbox's Python environment, once, in {venv}", file=sys.stderr)
        if not _with_uv(runner, venv, requirements):
            _with_pip(runner, venv, requirements, yes)
        write_atomic(venv / STAMP, b"", 0o644)


def base_python() -> str:
    """The interpreter behind links and venvs, by its versioned name: an upgrade removes that name, the
    environment then shows a dangling link, and the launcher makes a new one."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _with_uv(runner: Runner, venv: Path, requirements: Path) -> bool:
    if shutil.which("uv") is None:
        return False
    shutil.rmtree(venv, ignore_errors=True)
    python = str(venv / "bin" / "python")
    for argv in (
        ("uv", "venv", "--python", base_python(), str(venv)),
        ("uv", "pip", "install", "--python", python, "--require-hashes", "-r", str(requirements)),
    ):
        # uv does not read pip's configuration (a mirror, say): pip may succeed where it fails.
        # Not in the project's directory, whose uv.toml is not for this.
        if not runner.run(Command(argv, cwd=venv.parent), timeout=BUILD_TIMEOUT).ok:
            return False
    return True


def _with_pip(runner: Runner, venv: Path, requirements: Path, yes: bool) -> None:
    if importlib.util.find_spec("ensurepip") is None:
        _install_venv(runner, yes)
    shutil.rmtree(venv, ignore_errors=True)
    pip = (str(venv / "bin" / "python"), "-I", "-m", "pip", "--disable-pip-version-check", "install")
    for argv in (
        (base_python(), "-I", "-m", "venv", str(venv)),
        (*pip, "--quiet", "--require-hashes", "-r", str(requirements)),
    ):
        result = runner.run(Command(argv), timeout=BUILD_TIMEOUT)
        if not result.ok:
            shutil.rmtree(venv, ignore_errors=True)
            raise HostSetupError(
                "Could not make the Python environment.",
                details=f"{shlex.join(argv)}\n{result.last_lines}",
                resolution="Check the network, and pip's settings for a mirror, proxy or CA; then try again.",
            )


def _install_venv(runner: Runner, yes: bool) -> None:
    """Debian and Ubuntu split venv's heart off into a package of its own."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    brief = f"Python {version} is here without its venv module (ensurepip)."
    if shutil.which("apt-get") is None:
        raise HostSetupError(
            brief, resolution="Install it, or uv (https://docs.astral.sh/uv/); then try again."
        )
    sudo = () if os.geteuid() == 0 else ("sudo",)
    quiet = (*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get")
    commands = [
        Command((*quiet, "update")),
        Command((*quiet, "install", "-y", "--no-install-recommends", f"python{version}-venv")),
    ]
    lines = "\n".join(f"    {command}" for command in commands)
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise HostSetupError(brief, details=lines, resolution="Run these, then try again; or add -y.")
        print(f"{brief} To install it:\n{lines}\nGo on? [Y/n] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("", "y", "yes"):
            raise Cancelled("Nothing was installed.")
    for command in commands:
        if runner.foreground(command) != 0:
            raise HostSetupError(f"`{command}` failed.", resolution="Fix that, or install it yourself.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

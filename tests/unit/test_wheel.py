"""What pip and pipx install: the wheel's commands, its types and its public modules; and the same from a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from _claude_sandbox import __version__, errors

ROOT = Path(__file__).resolve().parents[2]

USER_PROGRAM = """
from collections.abc import Iterator
from pathlib import Path

import claude_sandbox.errors
from claude_sandbox import ClaudeSandboxError, Event, Sandbox, SandboxNotFoundError, Session


def states(project: Path) -> Iterator[tuple[str, str]]:
    try:
        sandbox = Sandbox.at(project)
    except SandboxNotFoundError as error:
        print(error.brief, error.resolution or "")
        return
    except ClaudeSandboxError as error:
        raise SystemExit(error.exit_code) from error
    for item in sandbox.events(follow=False, since_ns=0):
        if isinstance(item, Event):
            yield item.name, str(item.data.get("tool_name", ""))
        else:
            session: Session = item
            yield session.state, session.message


def brief(error: claude_sandbox.errors.UsageError) -> str:
    return error.brief
"""
WRONG = {
    "Sandbox.at(1)": "arg-type",
    "Sandbox.at('.').no_such_method()": "attr-defined",
    "claude_sandbox.no_such_name": "attr-defined",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; its dependencies are those of this environment."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    shutil.copytree(
        ROOT,
        source,
        symlinks=True,
        ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "tests", "bench"),
    )
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(root / "dist"), cwd=source)
    (wheel,) = (root / "dist").glob("*.whl")
    venv.create(root / "venv", with_pip=True, symlinks=True)
    python = root / "venv" / "bin" / "python"
    run(str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel))
    packages = run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return root / "venv" / "bin"


def run(*argv: str, cwd: Path | None = None, code: int = 0) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def type_checked(installed: Path, program: Path, code: int) -> str:
    options = ("--strict", "--config-file=", "--python-executable", str(installed / "python"))
    return run(sys.executable, "-m", "mypy", *options, program.name, cwd=program.parent, code=code)


def test_a_user_s_program_is_type_checked(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(USER_PROGRAM)
    type_checked(installed, program, 0)
    program.write_text(USER_PROGRAM + "\n" + "\n".join(WRONG) + "\n")
    found = type_checked(installed, program, 1)
    for number, kind in enumerate(WRONG.values(), len(USER_PROGRAM.splitlines()) + 2):
        assert f"program.py:{number}: error:" in found and f"[{kind}]" in found, found


def test_its_commands_run(installed: Path, tmp_path: Path) -> None:
    version = f"claude-sandbox {__version__} "
    assert run(str(installed / "claude-sandbox"), "version", cwd=tmp_path).startswith(version)
    assert run(str(installed / "python"), "-m", "claude_sandbox", "version", cwd=tmp_path).startswith(version)
    for name in ("claude-hooks-server", "claude-audio-server"):
        assert f"usage: {name}" in run(str(installed / name), "--help", cwd=tmp_path)
    assert "tools VM" in run(str(installed / "rebuild-tools-vm"), "--help", cwd=tmp_path)


def test_it_starts_itself(installed: Path, tmp_path: Path) -> None:
    """As the daemons, tmux sessions and click handlers are started: by the path of a file of the wheel."""
    code = "from _claude_sandbox.system import program; print('\\n'.join(program.own_argv('version')))"
    argv = run(str(installed / "python"), "-c", code, cwd=tmp_path).splitlines()
    assert run(*argv, cwd=tmp_path).startswith(f"claude-sandbox {__version__} ")


IMPORTS = """
import sys
sys.path[:0] = sys.argv[1:]
import claude_sandbox
import claude_sandbox.errors
from claude_sandbox import *
for name in claude_sandbox.__all__:
    getattr(claude_sandbox, name)
for name in claude_sandbox.errors.__all__:
    assert getattr(claude_sandbox, name) is getattr(claude_sandbox.errors, name)
assert issubclass(SandboxNotFoundError, ClaudeSandboxError)
print(*claude_sandbox.errors.__all__)
"""


def test_the_public_names_are_importable_from_a_checkout_and_from_the_wheel(
    installed: Path, tmp_path: Path
) -> None:
    tree = {name for name, value in vars(errors).items() if isinstance(value, type)} - {"Sequence"}
    checkout = run(sys.executable, "-c", IMPORTS, str(ROOT), cwd=tmp_path)
    assert set(checkout.split()) == tree
    assert run(str(installed / "python"), "-c", IMPORTS, cwd=tmp_path) == checkout

"""The real launcher, in a checkout with a stand-in for the program: issue item 1, spec 2.2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.host import python_env
from _claude_sandbox.system.run import Command, Result
from tests.support.recording import Recorder, failed

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = "import sys\nprint(sys.prefix)\nprint(sys.argv[1:])\nsys.exit(7)\n"
SHELLS = [[name] for name in ("dash", "bash", "ksh") if shutil.which(name)]
SHELLS += [["busybox", "sh"]] if shutil.which("busybox") else []


@dataclass
class Checkout:
    """A checkout whose lock file is empty: making its environment needs no network."""

    root: Path
    env: dict[str, str]

    def run(
        self, *argv: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, env={**self.env, **(env or {})}, cwd=cwd, capture_output=True, text=True, timeout=120,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    @property
    def launcher(self) -> str:
        return str(self.root / "a checkout" / "claude-sandbox")

    @property
    def cache(self) -> Path:
        return self.root / "cache" / "claude-sandbox"

    def environments(self) -> list[Path]:
        return sorted(path.parent for path in self.cache.glob("venv-*/.complete"))

    def path_without_python(self) -> Path:
        """A PATH with what the launcher needs, and neither Python nor a package manager."""
        directory = self.root / "bin"
        directory.mkdir()
        for name in ("cksum", "id", "dirname", "readlink", "sh", "getent", "cut"):
            found = shutil.which(name)
            assert found
            (directory / name).symlink_to(found)
        return directory


def make_checkout(root: Path) -> Checkout:
    code = root / "a checkout"
    for room in ("host", "system"):
        (code / "_claude_sandbox" / room).mkdir(parents=True)
    for name in ("claude-sandbox", "rebuild-tools-vm", "claude-hooks-server"):
        shutil.copy2(ROOT / name, code / name)
    for name in (
        "__init__",
        "errors",
        "host/__init__",
        "host/python_env",
        "system/__init__",
        "system/child",
        "system/files",
        "system/processes",
        "system/run",
        "system/text",
    ):
        shutil.copy2(ROOT / "_claude_sandbox" / f"{name}.py", code / "_claude_sandbox" / f"{name}.py")
    (code / "requirements.lock").write_text("# nothing\n")
    (code / "claude_sandbox.py").write_text(STAND_IN)
    (root / "home").mkdir()
    python = Path(sys.executable).resolve().parent  # not this test's own environment
    env = {
        "HOME": str(root / "home"),
        "XDG_CACHE_HOME": str(root / "cache"),
        "PATH": f"{python}:{os.environ['PATH']}",
    }
    return Checkout(root, env)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """One in which two first runs at once have made the environment."""
    checkout = make_checkout(tmp_path_factory.mktemp("used"))
    both = [
        subprocess.Popen(
            [checkout.launcher, "status"], env=checkout.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    answers = [process.communicate(timeout=180) for process in both]
    assert [process.returncode for process in both] == [7, 7], answers
    assert sum("Preparing" in err for _, err in answers) == 1, answers
    yield checkout


def test_two_first_runs_make_one_environment_outside_the_checkout(used: Checkout) -> None:
    assert len(used.environments()) == 1
    assert not list((used.root / "a checkout").glob("*venv*"))


def test_later_runs_use_it_and_pass_everything_through(used: Checkout) -> None:
    ended = used.run(used.launcher, "shell", "--", "a b", "$HOME", "*", "")
    assert ended.returncode == 7
    assert ended.stdout.splitlines() == [
        str(used.environments()[0]),
        "['shell', '--', 'a b', '$HOME', '*', '']",
    ]
    assert ended.stderr == ""


def test_a_later_run_starts_no_python_but_the_last(used: Checkout, tmp_path: Path) -> None:
    """With nothing on PATH but a few tools, and an id that root's home asks for."""
    spare = Checkout(tmp_path, {}).path_without_python()
    assert used.run(used.launcher, "x", env={"PATH": str(spare)}).returncode == 7


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
def test_every_posix_shell_runs_it(used: Checkout, shell: list[str]) -> None:
    assert used.run(*shell, used.launcher, "x").stdout.endswith("['x']\n")
    here = Path(used.launcher).parent
    assert used.run(*shell, "claude-sandbox", "x", cwd=here).stdout.endswith("['x']\n")


def test_through_symlinks_from_another_directory(used: Checkout, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "link").symlink_to(used.launcher)
    (tmp_path / "short").symlink_to("deep/link")
    ended = used.run("./short", "status", cwd=tmp_path)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (7, "['status']")
    ended = used.run("short", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, cwd=Path("/"))
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (7, "[]")


@pytest.mark.spec("1.9")
def test_rebuild_tools_vm_is_the_verb(used: Checkout, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(Path(used.launcher).parent / "rebuild-tools-vm")
    assert used.run(str(tmp_path / "link"), "-y").stdout.endswith("['rebuild-tools-vm', '-y']\n")
    server = Path(used.launcher).parent / "claude-hooks-server"
    assert used.run(str(server), "--help").stdout.endswith("['_hooks-server', '--help']\n")


def test_another_lock_file_is_another_environment(used: Checkout) -> None:
    before = used.environments()
    lock = Path(used.launcher).parent / "requirements.lock"
    lock.write_text("# nothing else\n")
    try:
        ended = used.run(used.launcher, "status")
    finally:
        lock.write_text("# nothing\n")
    assert ended.returncode == 7 and "Preparing" in ended.stderr
    assert len(used.environments()) == len(before) + 1


def test_an_environment_whose_python_went_away_is_made_again(used: Checkout) -> None:
    python = used.environments()[0] / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3.11")
    assert "Preparing" in used.run(used.launcher, "x").stderr
    assert used.run(used.launcher, "x").stderr == ""


@pytest.mark.spec("2.2")
@pytest.mark.parametrize(
    "words", [["--help"], ["shell", "-h"], ["--version"], ["version"], ["help", "shell"]]
)
def test_help_and_version_need_no_environment(checkout: Checkout, words: list[str]) -> None:
    ended = checkout.run(checkout.launcher, *words)
    assert ended.stdout.splitlines()[-1] == str(words) and ended.stderr == ""
    assert not checkout.cache.exists()


def test_an_interrupted_first_run_is_not_trusted(checkout: Checkout) -> None:
    # What follows `--` is the program's: no help of ours, so the environment is made.
    assert checkout.run(checkout.launcher, "shell", "--", "ls", "--help").returncode == 7
    (venv,) = checkout.environments()
    (venv / ".complete").unlink()
    shutil.rmtree(venv / "lib")
    ended = checkout.run(checkout.launcher)
    assert ended.returncode == 7 and "Preparing" in ended.stderr
    assert (venv / "lib").is_dir() and checkout.environments() == [venv]


def test_no_python_and_nobody_to_ask(checkout: Checkout) -> None:
    spare = checkout.path_without_python()
    (spare / "apt-get").write_text("#!/bin/sh\nexit 1\n")
    (spare / "apt-get").chmod(0o755)
    ended = checkout.run(checkout.launcher, "status", env={"PATH": str(spare)})
    assert ended.returncode == 1
    assert "needs Python 3.11" in ended.stderr
    assert "apt-get install -y --no-install-recommends python3 python3-venv" in ended.stderr
    ended = checkout.run(checkout.launcher, "status", "-y", env={"PATH": str(spare)})
    assert ended.returncode == 1 and "That failed" in ended.stderr


def test_no_python_and_yes_installs_one(checkout: Checkout) -> None:
    spare = checkout.path_without_python()
    real = Path(sys.executable).resolve()
    (spare / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (spare / "apt-get").write_text(
        f'#!/bin/sh\n[ "$1" = update ] || PATH=/bin:/usr/bin ln -s "{real}" "{spare}/python3"\n'
    )
    for name in ("sudo", "apt-get"):
        (spare / name).chmod(0o755)
    ended = checkout.run(checkout.launcher, "status", "-y", env={"PATH": str(spare)})
    assert ended.returncode == 7, ended.stderr


def test_an_old_python_is_passed_over(checkout: Checkout) -> None:
    spare = checkout.path_without_python()
    (spare / "python3").write_text("#!/bin/sh\nexit 1\n")
    (spare / "python3").chmod(0o755)
    (spare / "python3.12").symlink_to(Path(sys.executable).resolve())
    ended = checkout.run(checkout.launcher, "--version", env={"PATH": str(spare)})
    assert ended.stdout.splitlines()[-1] == "['--version']", ended.stderr


# -- root with somebody's HOME (sudo -E, sudo on macOS) ----------------------------------------------

IN_PRIVATE = 'mount -t tmpfs tmpfs /var/cache; exec "$@"'


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux")
@pytest.mark.parametrize("sudo", [{}, {"SUDO_UID": "4321", "SUDO_GID": "4321"}], ids=["root", "sudo"])
@pytest.mark.parametrize("cache", [{}, {"XDG_CACHE_HOME": "home/.cache"}], ids=["home", "xdg"])
def test_root_leaves_nothing_in_somebody_s_home(
    checkout: Checkout, sudo: Mapping[str, str], cache: Mapping[str, str]
) -> None:
    """Neither in the home nor in a checkout there: no environment, no lock, no compiled file."""
    for path in (checkout.root, *checkout.root.rglob("*")):
        os.chown(path, 4321, 4321, follow_symlinks=False)
    env = {**checkout.env, **sudo, **{k: str(checkout.root / v) for k, v in cache.items()}}
    if not cache:
        del env["XDG_CACHE_HOME"]
    for words in (["status"], ["--help"]):
        # What root makes goes to its own places, which are private here.
        private = ["unshare", "--mount", "sh", "-eu", "-c", IN_PRIVATE, "-"]
        done = subprocess.run(
            [*private, checkout.launcher, *words], env=env, capture_output=True, text=True, timeout=120,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 7, done
        assert words == ["--help"] or "/var/cache/claude-sandbox/venv-" in done.stdout, done
    left = [str(path) for path in checkout.root.rglob("*") if path.lstat().st_uid == 0]
    assert left == []


# -- host/python_env.py, with a recording runner -----------------------------------------------------------


def which(*names: str) -> object:
    return lambda name, *_args, **_options: f"/bin/{name}" if name in names else None


def makes(venv: Path) -> Callable[[Command], Result]:
    def answer(_: Command) -> Result:
        venv.mkdir(exist_ok=True)
        return Result(0)

    return answer


def test_uv_makes_it_where_it_is(tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", which("uv"))
    venv, lock = tmp_path / "c" / "venv-1", tmp_path / "requirements.lock"
    recorder.on("uv", "venv", then=makes(venv))
    python_env.make(recorder, venv, lock, yes=False)
    assert [argv[:3] for argv in recorder.argvs()] == [("uv", "venv", "--python"), ("uv", "pip", "install")]
    assert "--require-hashes" in recorder.argvs()[1]
    assert all(call.command.cwd == venv.parent for call in recorder.calls)  # not in a project's directory
    assert (venv / ".complete").exists()


def test_pip_where_uv_fails(tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", which("uv"))
    venv = tmp_path / "venv-1"
    recorder.on("uv", then=failed("no such index"))
    recorder.on(python_env.base_python(), then=makes(venv))
    python_env.make(recorder, venv, tmp_path / "lock", yes=False)
    assert recorder.argvs()[-1][1:4] == ("-I", "-m", "pip") and "--require-hashes" in recorder.argvs()[-1]


def test_a_failed_install_is_told_in_pip_s_words(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", which())
    recorder.on(
        str(tmp_path / "venv-1/bin/python"), then=failed("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES")
    )
    with pytest.raises(HostSetupError, match="DO NOT MATCH THE HASHES"):
        python_env.make(recorder, tmp_path / "venv-1", tmp_path / "lock", yes=False)
    assert not (tmp_path / "venv-1" / ".complete").exists()


def test_debian_without_venv(tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", which("apt-get"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    package = f"python3.{sys.version_info[1]}-venv"
    with pytest.raises(HostSetupError) as caught:
        python_env.make(recorder, tmp_path / "venv-1", tmp_path / "lock", yes=False)
    assert f"apt-get install -y --no-install-recommends {package}" in str(caught.value)
    assert recorder.calls == []
    venv = tmp_path / "venv-1"
    recorder.on(python_env.base_python(), then=makes(venv))
    python_env.make(recorder, venv, tmp_path / "lock", yes=True)
    assert [call.how for call in recorder.calls][:2] == ["foreground", "foreground"]
    assert recorder.argvs()[1][-1] == package

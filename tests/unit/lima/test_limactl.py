"""limactl: the exact argv, and what its answers mean."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.errors import LimaError
from _claude_sandbox.lima import limactl
from _claude_sandbox.lima.limactl import Instance, Lima
from _claude_sandbox.system.run import Result
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm.mark import mark_of
from tests.support.recording import CHILD, Recorder, failed, listed, listen

MARK = vm_mark.Mark(vm_mark.SANDBOX, "a", Path("/p"), 1, 2)


@pytest.fixture
def driver(recorder: Recorder, tmp_path: Path) -> Lima:
    return Lima(recorder, tmp_path)


@pytest.fixture
def short(home: Path, recorder: Recorder) -> Lima:
    """One whose sockets have paths that a socket can have."""
    return Lima(recorder, home)


CHANGES: list[tuple[Callable[[Lima], object], tuple[str, ...]]] = [
    (lambda d: d.clone("base", "new"), ("clone", "--tty=false", "base", "new")),
    (lambda d: d.create("new", Path("/x y.yaml")), ("create", "--tty=false", "--name=new", "/x y.yaml")),
    (lambda d: d.start("a", timeout=90), ("start", "--tty=false", "--timeout=90s", "a")),
    (lambda d: d.stop("a"), ("stop", "--tty=false", "a")),
    (lambda d: d.stop("a", force=True), ("stop", "--tty=false", "--force", "a")),
    (lambda d: d.delete("a"), ("delete", "--tty=false", "--force", "a")),
    (lambda d: d.delete("a", force=False), ("delete", "--tty=false", "a")),
    (lambda d: d.protect("a"), ("protect", "--tty=false", "a")),
    (lambda d: d.unprotect("a"), ("unprotect", "--tty=false", "a")),
]


@pytest.mark.parametrize(("call", "argv"), CHANGES, ids=[argv[0] for _, argv in CHANGES])
def test_changes_never_ask_and_always_end(
    driver: Lima, recorder: Recorder, tmp_path: Path, call: Callable[[Lima], object], argv: tuple[str, ...]
) -> None:
    call(driver)
    (made,) = recorder.calls
    assert made.argv == ("limactl", *argv)
    assert made.timeout is not None and made.changes
    assert made.command.env["LIMA_HOME"] == str(tmp_path)


def test_a_start_gets_longer_than_lima_s_own_limit_and_its_own_environment(
    driver: Lima, recorder: Recorder, tmp_path: Path
) -> None:
    pids: list[int] = []
    lines: list[str] = []
    recorder.on("limactl", "start", then=failed("one\ntwo"))
    driver.start("a", timeout=90, env={"QEMU_SYSTEM_X86_64": "q"}, on_start=pids.append, on_line=lines.append,
                 logfile=tmp_path / "log")  # fmt: skip
    (made,) = recorder.calls
    assert made.timeout is not None and made.timeout > 90
    assert made.command.env == {"LIMA_HOME": str(tmp_path), "QEMU_SYSTEM_X86_64": "q"}
    assert (pids, lines) == ([CHILD], ["one", "two"]) and (tmp_path / "log").read_text() == "one\ntwo"


def test_a_stop_waits_longer_than_lima_does(driver: Lima, recorder: Recorder) -> None:
    """facts/lima.md §13: a graceful stop may take 3 min 10 s."""
    driver.stop("a")
    assert (recorder.calls[0].timeout or 0) > 190


def test_the_user_namespace_goes_before_limactl(recorder: Recorder, tmp_path: Path) -> None:
    driver = Lima(
        recorder, tmp_path, executable="/l/limactl", prefix=["unshare", "--user", "--"], env={"HOME": "/h"}
    )
    driver.protect("a")
    assert recorder.argvs() == [("unshare", "--user", "--", "/l/limactl", "protect", "--tty=false", "a")]
    assert recorder.calls[0].command.env == {"LIMA_HOME": str(tmp_path), "HOME": "/h"}


def test_questions_are_marked_so(driver: Lima, recorder: Recorder) -> None:
    """A dry run asks them."""
    recorder.on("limactl", "--version", then=Result(0, b"limactl version 2.2.0\n"))
    recorder.on("limactl", "template", then=Result(0, b"images: []\n"))
    recorder.on("limactl", "list", "--format", "{{json .Config}}", then=Result(0, b'{"cpus": 2}\n'))
    assert driver.version() == (2, 2, 0)
    assert driver.list() == []
    assert driver.config("a") == {"cpus": 2}
    assert driver.template("template:x") == {"images": []}
    assert all(not call.changes and call.timeout for call in recorder.calls)
    assert recorder.argvs()[-1] == ("limactl", "template", "copy", "--embed-all", "template:x", "-")


def test_list_does_not_go_through_the_scanner_that_breaks_at_64_kib(driver: Lima, recorder: Recorder) -> None:
    driver.list("a", "b")
    argv = recorder.argvs()[0]
    assert argv[1:3] == ("list", "--format") and argv[4:] == ("a", "b")
    assert argv[3].startswith("[{{json .Name}},") and "Config}}" not in argv[3]


def test_instances(driver: Lima, recorder: Recorder) -> None:
    row = {"Name": "a", "Status": "Running", "Dir": "/l/a", "SSHLocalPort": 60022, "CPUs": 3, "Memory": 1, "Disk": 2,
           "Protected": True, "Param": {vm_mark.MARK_PARAM: MARK.encode()}}  # fmt: skip
    recorder.on("limactl", "list", then=listed(row, {**row, "Name": "copy", "Dir": "/l/copy"}))
    one, copy = driver.list()
    assert one == Instance(
        "a",
        "Running",
        Path("/l/a"),
        60022,
        3,
        1,
        2,
        True,
        "qemu",
        "2.2.0",
        {vm_mark.MARK_PARAM: MARK.encode()},
    )
    assert mark_of(one) == MARK and one.ssh_host == "lima-a" and one.ssh_config == Path("/l/a/ssh.config")
    assert mark_of(copy) is None  # a hand-made clone carries the mark of another


def test_a_named_instance_that_is_unknown_is_not_there(driver: Lima, recorder: Recorder) -> None:
    row: dict[str, object] = {"Name": "a", "Dir": "/l/a"}
    recorder.on(
        "limactl",
        "list",
        then=Result(1, listed(row).stdout, b'time="x" level=fatal msg="unmatched instances"'),
    )
    assert [i.name for i in driver.list("a", "gone")] == ["a"]
    recorder.on("limactl", "list", then=failed('time="x" level=fatal msg="disk on fire"'))
    with pytest.raises(LimaError, match="limactl list failed") as caught:
        driver.list("a")
    assert caught.value.details == "disk on fire"


def test_get_asks_only_for_what_is_there(driver: Lima, recorder: Recorder, tmp_path: Path) -> None:
    assert driver.get("gone") is None and recorder.calls == []
    (tmp_path / "a").mkdir()
    assert driver.get("a") is None  # Lima does not know it
    recorder.on("limactl", "list", then=listed({"Name": "a", "Dir": str(tmp_path / "a")}))
    assert driver.get("a") is not None


@pytest.mark.parametrize(("call", "argv"), CHANGES, ids=[argv[0] for _, argv in CHANGES])
def test_failures_are_told_in_lima_s_words(
    driver: Lima, recorder: Recorder, call: Callable[[Lima], object], argv: tuple[str, ...]
) -> None:
    recorder.on(
        "limactl", then=failed('time="x" level=info msg=hi\ntime="x" level=fatal msg="no such \\"a\\""')
    )
    if argv[0] == "start":  # its failure has shades: the caller looks
        result = call(driver)
        assert isinstance(result, Result) and result.returncode == 1
        return
    with pytest.raises(LimaError, match=f"limactl {argv[0]} failed") as caught:
        call(driver)
    assert caught.value.details == 'no such "a"'
    recorder.on("limactl", then=Result(124, b"", b"no end within 30 s"))
    with pytest.raises(LimaError, match=f"limactl {argv[0]} did not answer"):
        call(driver)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=13) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=14,
)


@given(
    st.one_of(
        st.text(max_size=80),
        json_values.map(json.dumps),
        st.lists(json_values, min_size=12, max_size=12).map(json.dumps),
    )
)
def test_garbage_is_an_error_of_lima_s_and_nothing_else(line: str) -> None:
    try:
        instance = limactl.parse_instance(line)
    except LimaError as error:
        assert "unreadable" in error.brief
    else:
        assert isinstance(instance.name, str) and (
            mark_of(instance) is None or isinstance(mark_of(instance), vm_mark.Mark)
        )


@pytest.mark.parametrize("field", range(12))
def test_a_field_of_a_wrong_type_is_garbage(field: int) -> None:
    good = json.loads(listed({"Name": "a", "Dir": "/a", "Param": {"k": "v"}}).text)
    limactl.parse_instance(json.dumps(good))
    if field != 4:
        for wrong in ([1], {"k": 1}, 1.5):
            with pytest.raises(LimaError):
                limactl.parse_instance(json.dumps([*good[:field], wrong, *good[field + 1 :]]))
    else:
        with pytest.raises(LimaError):
            limactl.parse_instance(json.dumps(good[:-1]))


@pytest.mark.parametrize("answer", [b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"a": 1}\n{"b": 2}'])
def test_an_unreadable_config_is_an_error(driver: Lima, recorder: Recorder, answer: bytes) -> None:
    recorder.on("limactl", then=Result(0, answer))
    with pytest.raises(LimaError, match="unreadable"):
        driver.config("a")


@pytest.mark.parametrize("answer", [b"- a", b"a: [", b"", b"text"])
def test_an_unreadable_template_is_an_error(driver: Lima, recorder: Recorder, answer: bytes) -> None:
    recorder.on("limactl", then=Result(0, answer))
    with pytest.raises(LimaError, match="template"):
        driver.template("x.yaml")


def test_lima_s_empty_status_is_ours_and_the_mark_is_read_from_the_file(tmp_path: Path) -> None:
    """facts/checked.md: a mount location that became a file gives status "" and no param."""
    (tmp_path / "lima.yaml").write_text(f"param:\n  {vm_mark.MARK_PARAM}: {MARK.encode()}\n")
    line = listed({"Name": "a", "Status": "", "Dir": str(tmp_path)}).text
    instance = limactl.parse_instance(line)
    assert instance.status == limactl.UNREADABLE and mark_of(instance) == MARK


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("limactl version 2.2.0", (2, 2, 0)),
        ("limactl version v2.1.2-rc.1+g123", (2, 1, 2)),
        ("limactl version <unknown>", None),
        ("", None),
    ],
)
def test_versions(text: str, version: tuple[int, ...] | None) -> None:
    assert limactl.parse_version(text) == version


# -- reading files instead of asking ------------------------------------------------------------------


def put(home: Path, *files: str, pid: int) -> Path:
    directory = home / "a"
    directory.mkdir(exist_ok=True)
    (directory / "lima.yaml").write_text(
        f"cpus: 2\nparam:\n  other: x\n  {vm_mark.MARK_PARAM}: '{MARK.encode()}'\n"
    )
    for name in files:
        if name.endswith(".sock"):
            listen(directory / name)
        else:
            (directory / name).write_text(f"{pid}\n")
    return directory


ALL = ("ha.pid", "qemu.pid", "ha.sock", "ssh.config")


@pytest.mark.parametrize(
    ("files", "alive", "status"),
    [
        ((), True, "Stopped"),
        (ALL, True, "Running"),
        (("ha.pid", "vz.pid", "ha.sock", "ssh.config"), True, "Running"),
        (ALL, False, "Broken"),
        (("ha.pid",), True, "Broken"),  # starting
        (("qemu.pid", "ssh.config"), True, "Broken"),  # its host agent died
        (("ha.pid", "qemu.pid", "ssh.config"), True, "Broken"),
        (("ssh.config",), True, "Stopped"),
    ],
)
def test_what_the_files_say(
    short: Lima, recorder: Recorder, files: tuple[str, ...], alive: bool, status: str
) -> None:
    put(short.home, *files, pid=os.getpid() if alive else 2**22 + 1)
    instance = short.read_instance_files("a")
    assert instance is not None and instance.status == status and mark_of(instance) == MARK
    assert recorder.calls == []


def test_pid_files_of_a_host_that_went_down_do_not_make_a_vm_run(short: Lima) -> None:
    """Other processes have those ids by now, and a socket that nobody listens on stays behind."""
    directory = put(short.home, "ha.pid", "qemu.pid", "ssh.config", pid=os.getpid())
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(directory / "ha.sock"))
    server.close()
    instance = short.read_instance_files("a")
    assert instance is not None and instance.status == "Broken"


def test_files_that_are_not_there_or_garbage(driver: Lima, tmp_path: Path) -> None:
    assert driver.read_instance_files("gone") is None
    directory = put(tmp_path, pid=1)
    (directory / "ha.pid").write_text("garbage")
    (directory / "lima.yaml").write_bytes(b"\xff\xfe: [")
    instance = driver.read_instance_files("a")
    assert instance is not None and instance.status == "Broken" and mark_of(instance) is None


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_the_mark_s_line(quote: str) -> None:
    text = f"x: 1\nparam:\n    {vm_mark.MARK_PARAM}: {quote}{MARK.encode()}{quote}\nmounts: []\n"
    assert limactl.param_of(text) == {vm_mark.MARK_PARAM: MARK.encode()}
    assert limactl.param_of("param: {}\n") == limactl.param_of(f"{vm_mark.MARK_PARAM}: x") == {}


# -- Lima's log ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            'time="2026-11-21T13:00:00Z" level=fatal msg="instance \\"x\\" not found"',
            'instance "x" not found',
        ),
        ('time="t" level=warning msg="[hostagent] slow" error="EOF"', '[hostagent] slow error="EOF"'),
        ('time="t" level=error msg=EOF', "EOF"),
        ('time="t" level=info msg="Starting"', ""),
        ('time="t" level=fatal msg="two\\nlines\\tand a tab"', "two\nlines  and a tab"),
        ("panic: something", "panic: something"),
        ('time="t" level=fatal msg="C:\\\\x"', "C:\\x"),
    ],
)
def test_rewording(line: str, words: str) -> None:
    assert limactl.reword(line) == words


def test_only_the_last_lines_are_told() -> None:
    log = "\n".join(f'time="t" level=error msg="e{n}"' for n in range(50))
    assert limactl.reword(log, 3) == "e47\ne48\ne49"


def test_a_lima_without_templates_says_what_to_do(driver: Lima, recorder: Recorder) -> None:
    said = b'time="2026-11-21T20:30:15Z" level=fatal msg="template `default.yaml` not found"\n'
    recorder.on("limactl", "template", then=Result(1, b"", said))
    with pytest.raises(LimaError, match="has no template:default") as caught:
        driver.template("template:default")
    assert "rebuild-tools-vm" in str(caught.value)


def test_another_failure_with_a_template_keeps_limas_words(driver: Lima, recorder: Recorder) -> None:
    recorder.on("limactl", "template", then=Result(1, b"", b'time="x" level=fatal msg="boom"\n'))
    with pytest.raises(LimaError, match="limactl template failed") as caught:
        driver.template("template:default")
    assert "boom" in str(caught.value)

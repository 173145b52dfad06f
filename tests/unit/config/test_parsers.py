"""What a user types: every accepted form, and a sentence for what is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.config import parsers as config_parsers
from _claude_sandbox.config.parsers import Mount, Port
from _claude_sandbox.system import units
from _claude_sandbox.system.units import GIB, MIB, TIB


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * GIB), ("8G", 8 * GIB), ("8gb", 8 * GIB), ("8 GiB", 8 * GIB), (" 512MiB ", 512 * MIB),
        ("1.5GiB", 1536 * MIB), ("1TiB", TIB), ("1048576k", GIB), (1 << 30, GIB), ("2097152K", 2 * GIB),
    ],
)  # fmt: skip
def test_sizes(text: object, size: int) -> None:
    assert units.parse_size(text, 1) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "8XB", "-1GiB", "8GiBx", "1e3", "8 G B", "८GiB", "0x8", "8;rm", None, [], "9" * 400]
)
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        units.parse_size(text, 1)


@given(st.integers(min_value=1, max_value=64 * 1024 * 1024))
def test_a_size_is_read_as_it_was_written(mebibytes: int) -> None:
    text = units.format_size(mebibytes * MIB)
    assert units.parse_size(text, 1) == mebibytes * MIB
    assert re.fullmatch(r"\d+[MGT]iB", text)


@given(st.decimals(min_value=1, max_value=4096, places=3), st.sampled_from(["MiB", "GiB"]))
def test_what_is_asked_for_again_equals_what_was_written(number: object, unit: str) -> None:
    """Else `--disk 10.7GiB` on an existing sandbox would seem to shrink the 10957MiB in its file."""
    asked = units.parse_size(f"{number}{unit}", 1)
    assert units.parse_size(units.format_size(asked), 1) == asked


def test_limits_are_named() -> None:
    assert config_parsers.parse_memory("512MiB") == 512 * MIB
    assert config_parsers.parse_disk("1GiB") == GIB
    with pytest.raises(ValueError, match="out of range; 512MiB to 8TiB"):
        config_parsers.parse_memory("511MiB")
    with pytest.raises(ValueError, match="out of range"):
        config_parsers.parse_memory("9TiB")
    with pytest.raises(ValueError, match="1GiB to 64TiB"):
        config_parsers.parse_disk("0")


@pytest.mark.parametrize(("value", "cpus"), [("1", 1), (" 8 ", 8), (4, 4), ("1024", 1024)])
def test_cpus(value: object, cpus: int) -> None:
    assert config_parsers.parse_cpus(value) == cpus


@pytest.mark.parametrize("value", ["0", "1025", "-1", "two", "1.5", 2.0, True, None, "", "٣", "99999", [1]])
def test_no_cpus(value: object) -> None:
    with pytest.raises(ValueError, match="invalid number of CPUs"):
        config_parsers.parse_cpus(value)


@pytest.mark.parametrize(
    ("value", "ports"),
    [
        ("80:8080,9090", [(80, 8080), (9090, 9090)]),
        ("9090, 80:8080", [(80, 8080), (9090, 9090)]),
        ("1,65535", [(1, 1), (65535, 65535)]),
        ("3000,3000", [(3000, 3000)]),
        ("3000:80,3001:80", [(3000, 80), (3001, 80)]),
        (8080, [(8080, 8080)]),
        ([8080, "81:82"], [(81, 82), (8080, 8080)]),
    ],
)
def test_ports(value: object, ports: list[tuple[int, int]]) -> None:
    assert config_parsers.parse_ports(value) == tuple(Port(*pair) for pair in ports)


@pytest.mark.parametrize(
    "value",
    ["0", "65536", "80:0", "80:", ":80", "80:81:82", "http", "-80", "80-90", "127.0.0.1:80:80", "८०", "1e3", True,
     "80;81"],
)  # fmt: skip
def test_no_ports(value: object) -> None:
    with pytest.raises(ValueError, match="invalid port"):
        config_parsers.parse_ports(value)


def test_a_host_port_leads_to_one_place() -> None:
    with pytest.raises(ValueError, match="host port 80 is asked for twice"):
        config_parsers.parse_ports("80:8080,80:9090")
    empty: list[object] = ["", ",", []]
    for nothing in empty:
        with pytest.raises(ValueError, match="invalid port ''"):
            config_parsers.parse_ports(nothing)


@given(st.dictionaries(st.integers(1, 65535), st.integers(1, 65535), min_size=1, max_size=8))
def test_ports_written_are_ports_read(wanted: dict[int, int]) -> None:
    ports = tuple(Port(host, guest) for host, guest in wanted.items())
    assert set(config_parsers.parse_ports(",".join(map(str, ports)))) == set(ports)


def test_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("data", "home/docs", "odd:name", "x:ro"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("data")
    assert config_parsers.parse_mounts("data", tmp_path) == (Mount(tmp_path / "data", True),)
    assert config_parsers.parse_mounts("data:ro", tmp_path) == (Mount(tmp_path / "data", False),)
    assert config_parsers.parse_mounts("link:rw", tmp_path) == (Mount(tmp_path / "data", True),)
    assert config_parsers.parse_mounts("~/docs:ro", tmp_path) == (Mount(tmp_path / "home" / "docs", False),)
    assert config_parsers.parse_mounts("odd:name", tmp_path) == (Mount(tmp_path / "odd:name", True),)
    assert config_parsers.parse_mounts("x:ro:ro", tmp_path) == (Mount(tmp_path / "x:ro", False),)
    assert [str(*config_parsers.parse_mounts(t, tmp_path)) for t in ("data", "data:ro")] == [
        f"{tmp_path}/data",
        f"{tmp_path}/data:ro",
    ]
    for text, words in (("", "invalid mount"), (":ro", "invalid mount"), ("gone", "no such directory")):
        with pytest.raises(ValueError, match=words):
            config_parsers.parse_mounts(text, tmp_path)


def test_vm_names() -> None:
    for good in ("tools-vm", "a", "A.b_c-d9"):
        assert config_parsers.parse_vm_name(good) == good
    for bad in (
        "",
        "-a",
        "a-",
        "a--b",
        "a/b",
        "a b",
        "../x",
        "a\n",
        "ä",
        "a" * 77,
        "$(id)",
        "a..b",
        None,
        True,
    ):
        with pytest.raises(ValueError, match="invalid VM name"):
            config_parsers.parse_vm_name(bad)


def test_templates_packages_and_host_switches() -> None:
    assert config_parsers.parse_template("template:default", Path("/")) == "template:default"
    odd: list[object] = ["", "--set", "a\nb", None, []]
    for bad in odd:
        with pytest.raises(ValueError, match="not a template"):
            config_parsers.parse_template(bad, Path("/"))
    assert config_parsers.parse_packages("ripgrep, g++,ripgrep") == ("ripgrep", "g++")
    assert config_parsers.parse_packages(["libssl-dev"]) == ("libssl-dev",)
    odd = ["Rip", "-y", "a b", "a;b", "../x", "a=1", ["--allow-unauthenticated"]]
    for bad in odd:
        with pytest.raises(ValueError, match="invalid package name"):
            config_parsers.parse_packages(bad)
    assert config_parsers.parse_from_host("host") is True
    assert config_parsers.parse_from_host("none") is False
    odd = ["yes", True, "HOST", 1]
    for bad in odd:
        with pytest.raises(ValueError, match="use host or none"):
            config_parsers.parse_from_host(bad)


def test_sizes_as_lima_writes_them() -> None:
    assert [units.format_size(n) for n in (GIB, 1536 * MIB, TIB, 512 * MIB, 12345, 0)] == [
        "1GiB", "1536MiB", "1TiB", "512MiB", "12345B", "0B",
    ]  # fmt: skip


def test_a_switch() -> None:
    assert config_parsers.parse_switch(True) is True and config_parsers.parse_switch(False) is False
    for odd in ("yes", "true", 1, None):
        with pytest.raises(ValueError, match="use true or false"):
            config_parsers.parse_switch(odd)


def test_what_is_notified() -> None:
    assert (
        config_parsers.parse_notify(True)
        == config_parsers.parse_notify("on")
        == ("needs_input", "failed", "done")
    )
    assert config_parsers.parse_notify(False) == config_parsers.parse_notify("off") == ()
    assert config_parsers.parse_notify(["done", "done"]) == ("done",)
    assert config_parsers.parse_notify("failed, needs_input") == ("failed", "needs_input")
    for bad in ("", [], "working", ["done", "x"], None, 3, {"a": 1}):
        with pytest.raises(ValueError):
            config_parsers.parse_notify(bad)


def test_a_command_is_words_and_no_shell() -> None:
    assert config_parsers.parse_words(["a b", "$(id)", ""]) == ("a b", "$(id)", "")
    assert config_parsers.parse_words("send --to 'my phone' | $HOME") == (
        "send",
        "--to",
        "my phone",
        "|",
        "$HOME",
    )
    for bad in ("", [], [""], [1], None, {"a": 1}, "it's", ["a\0"], True):
        with pytest.raises(ValueError):
            config_parsers.parse_words(bad)


def test_quiet_hours() -> None:
    assert config_parsers.parse_hours("22:00-07:00") == (1320, 420)
    assert config_parsers.parse_hours(" 9:05 - 17:30 ") == (545, 1050)
    for bad in (
        "",
        "22:00",
        "24:00-07:00",
        "22:60-07:00",
        "22:00-22:00",
        "22-7",
        None,
        7,
        "22:00-07:00-08:00",
    ):
        with pytest.raises(ValueError):
            config_parsers.parse_hours(bad)


def test_on_and_off() -> None:
    assert config_parsers.parse_on_off("on") is config_parsers.parse_on_off(True) is True
    assert config_parsers.parse_on_off("off") is config_parsers.parse_on_off(False) is False
    odd: list[object] = ["yes", None, [], 2]
    for bad in odd:
        with pytest.raises(ValueError):
            config_parsers.parse_on_off(bad)

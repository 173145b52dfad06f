"""Configuration files: a line for every key, and nothing that a hostile file can do but be refused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.config import yaml_file
from _claude_sandbox.errors import ConfigError


def write(path: Path, text: str | bytes) -> Path:
    file = path / "config.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_values_with_their_lines(tmp_path: Path) -> None:
    entries = yaml_file.read(
        write(tmp_path, "# mine\ncpus: 4\n\nports:\n  - 80:8080\n  - 9090\nmemory: 8GiB\n")
    )
    assert {key: (entry.value, entry.line) for key, entry in entries.items()} == {
        "cpus": (4, 2),
        "ports": (["80:8080", 9090], 4),
        "memory": ("8GiB", 7),
    }


@pytest.mark.parametrize("text", ["ports: 1000:22", "ports: [1000:22]", "ports: 22:22", "{ports: 2222:22}"])
def test_two_ports_are_no_number_to_the_base_of_sixty(tmp_path: Path, text: str) -> None:
    """YAML 1.1 would make 60022 of 1000:22, and forward the wrong port without a word."""
    value = yaml_file.read(write(tmp_path, text))["ports"].value
    assert (value if isinstance(value, str) else value[0]).count(":") == 1


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_an_empty_file_is_fine(tmp_path: Path, text: str) -> None:
    assert yaml_file.read(write(tmp_path, text)) == {}
    assert yaml_file.read(tmp_path / "none.yaml") == {}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("cpus: 1\ncpus: 2\n", 2, "duplicate key: cpus"),
        ("a: &x [1]\nb: *x\n", 2, "aliases"),
        ("- a\n", 1, "expected `key: value`"),
        ("just words\n", 1, "expected `key: value`"),
        ("a: 1\nb: [1, 2\n", 3, ""),
        ("a: 1\n\tb: 2\n", 2, ""),
        ("a: 1\n---\nb: 2\n", 2, ""),
        ("a: !!python/object/apply:os.system [id]\n", 1, "could not determine a constructor"),
        (b"a: 1\nb: \xff\n", 2, "not UTF-8"),
        ("a: \0", 1, ""),
        ("a: !!bool maybe\n", 1, "cannot be read"),
        ("b: 1\na: !!timestamp x\n", 2, "a: the value cannot be read as YAML (timestamp)"),
        ("a: !!int ''\n", 1, "cannot be read"),
        ("a: 2001-99-99\n", 1, "cannot be read"),
        ("a: [[[[[[[[1]]]]]]]]\n", 1, "nested deeper"),
        ("a: " + "x" * yaml_file.SIZE_LIMIT, 1, "larger than 64 KiB"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(
    tmp_path: Path, text: str | bytes, line: int, words: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        yaml_file.read(file)
    assert caught.value.brief.startswith(f"{file}:{line}: ")
    assert words in caught.value.brief
    assert not any(word in str(caught.value) for word in ("NoneType", "attribute", "groupdict", "KeyError"))


yamlish = st.text(st.sampled_from("ab:-[]{}&*!?|>'\"%@`#,<=\n 0123456789.~x\t"), max_size=40)


@given(
    st.one_of(st.binary(max_size=60), yamlish.map(str.encode), yamlish.map(lambda t: b"a: !!" + t.encode()))
)
def test_any_content_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    file = write(tmp_path, content)
    try:
        entries = yaml_file.read(file, hostile=True)
    except ConfigError as error:
        assert error.brief.startswith(f"{file}:")
    else:
        assert all(isinstance(key, str) and entry.line >= 1 for key, entry in entries.items())


def test_the_billion_laughs_are_refused_before_they_grow(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12)
    )
    with pytest.raises(ConfigError, match="aliases"):
        yaml_file.read(write(tmp_path, bomb), hostile=True)


@pytest.mark.parametrize("nest", ["[", "{", "- ", "? "])
def test_a_deeply_nested_file_is_refused_at_once(tmp_path: Path, nest: str) -> None:
    file = write(tmp_path, "a:\n " + nest * 30_000)
    begun = time.process_time()
    with pytest.raises(ConfigError):
        yaml_file.read(file, hostile=True)
    assert time.process_time() - begun < 5  # PyYAML alone: minutes


def test_a_hostile_symlink_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "secret.yaml"
    target.write_text("cpus: 1\n")
    link = tmp_path / "config.yaml"
    link.symlink_to(target)
    with pytest.raises(ConfigError, match="it is a symlink"):
        yaml_file.read(link, hostile=True)
    assert yaml_file.read(link)["cpus"].value == 1  # the user's own file may be one


@pytest.mark.parametrize("hostile", [True, False])
def test_a_fifo_does_not_hang_us(tmp_path: Path, hostile: bool) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        yaml_file.read(tmp_path / "config.yaml", hostile=hostile)


def test_a_directory_or_a_device_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    for odd in (tmp_path / "config.yaml", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="cannot be read"):
            yaml_file.read(odd, hostile=True)

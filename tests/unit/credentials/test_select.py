"""Which login a sandbox gets, and what may come back from it (spec 3.4, 5.3)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.credentials import select as credentials_select
from _claude_sandbox.credentials import share as credentials_share
from _claude_sandbox.credentials import stores as credentials_stores
from _claude_sandbox.credentials.exchange import Collected, CredentialLogin
from _claude_sandbox.credentials.select import TokenLogin
from _claude_sandbox.credentials.variables import Variable
from _claude_sandbox.errors import ClaudeSandboxError, GuestConnectionError, UsageError
from _claude_sandbox.lima.ssh import guest_script
from _claude_sandbox.system import paths
from _claude_sandbox.system.run import Result
from tests.support.credentials import FakeRunner, ShGuest, oauth


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "settings").mkdir()
    return tmp_path


def choose(
    home: Path, environ: dict[str, str], runner: Any = None, platform: str = "linux"
) -> credentials_select.Login:
    return credentials_select.select(
        environ,
        home / "settings",
        runner=runner,
        state_dir=home / "state",
        warn=pytest.fail,
        platform=platform,
    )


def from_file(home: Path, raw: bytes | None = None, warnings: list[str] | None = None) -> CredentialLogin:
    path = home / "settings" / ".credentials.json"
    if raw is not None:
        path.write_bytes(raw)
    warn = warnings.append if warnings is not None else pytest.fail
    return CredentialLogin(credentials_stores.FileStore(path), home / "state", warn)


def handed(strategy: CredentialLogin, *sandboxes: str) -> None:
    """As launches of these sandboxes do it."""
    for sandbox in sandboxes:
        strategy.bring(None, sandbox)


# -- selection -------------------------------------------------------------------------------------


@pytest.mark.spec("3.4")
def test_exactly_one_credential_in_the_documented_order(home: Path) -> None:
    environ = {name: f"value-of-{name}" for name in credentials_select.TOKEN_VARIABLES}
    credentials_select.store_token("sk-ant-oat01-" + "x" * 40)
    for name in credentials_select.TOKEN_VARIABLES:
        chosen = choose(home, environ)
        assert chosen.environment() == {name: Variable(f"value-of-{name}", ("host", name))}
        assert chosen.hand_over() is None and chosen.collect(oauth(), "vm") is None
        assert "value-of" not in repr(chosen) + chosen.description
        environ[name] = " "
    stored = Variable("sk-ant-oat01-" + "x" * 40, ("file", str(paths.token_file())))
    assert choose(home, environ).environment() == {"CLAUDE_CODE_OAUTH_TOKEN": stored}
    credentials_select.forget()
    assert isinstance(choose(home, environ), CredentialLogin)
    trimmed = choose(home, {"ANTHROPIC_API_KEY": " k "}).environment()["ANTHROPIC_API_KEY"]
    assert trimmed == Variable("k", None), "the host's variable is not what the session gets"


def test_a_credential_with_control_characters_is_refused(home: Path) -> None:
    with pytest.raises(UsageError, match="ANTHROPIC_API_KEY"):
        choose(home, {"ANTHROPIC_API_KEY": "a\nb"})


def test_the_keychain_is_used_on_macos_when_there_is_no_file(home: Path) -> None:
    runner = FakeRunner(oauth())
    chosen = choose(home, {"USER": "ada"}, runner, "darwin")
    assert chosen.hand_over() is not None and "keychain" in chosen.description
    (home / "settings" / ".credentials.json").write_bytes(oauth())
    assert choose(home, {"USER": "ada"}, runner, "darwin").description.endswith(".credentials.json")


# -- the stored token ------------------------------------------------------------------------------


def test_the_token_is_kept_private(home: Path) -> None:
    path = credentials_select.store_token(" sk-ant-oat01-" + "x" * 40 + "\n")
    assert path == paths.token_file() and path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert credentials_select.stored_token(pytest.fail) == "sk-ant-oat01-" + "x" * 40
    assert path.stat().st_mode & 0o777 == 0o600
    assert credentials_select.forget() and not credentials_select.forget()
    assert credentials_select.stored_token(pytest.fail) is None


@pytest.mark.parametrize(
    "text", ["", "short", "two lines\n" + "x" * 30, "x" * 5000, "é" * 30, "sk-ant-api03-" + "x" * 40]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        credentials_select.store_token(text)
    assert not text or text not in str(caught.value)


def test_a_broken_token_file_is_a_warning(home: Path) -> None:
    paths.token_file().parent.mkdir()
    paths.token_file().write_bytes(b"\xff\n")
    warnings: list[str] = []
    assert credentials_select.stored_token(warnings.append) is None and warnings


# -- API settings ----------------------------------------------------------------------------------


def test_only_the_named_settings_travel() -> None:
    environ = {
        "ANTHROPIC_MODEL": "opus", "ANTHROPIC_DEFAULT_OPUS_MODEL": "o", "API_TIMEOUT_MS": "1", "ANTHROPIC_API_KEY": "k",
        "CLAUDE_CODE_SESSION_ID": "x", "CLAUDE_CODE_ENTRYPOINT": "cli", "CLAUDE_CODE_SSE_PORT": "1", "CLAUDECODE": "1",
        "CLAUDE_CONFIG_DIR": "/x", "ANTHROPIC_CUSTOM_HEADERS": "a: b", "PATH": "/bin", "MAX_THINKING_TOKENS": "",
        "HTTPS_PROXY": "http://p", "CLAUDE_CODE_OAUTH_TOKEN": "t", "ANTHROPIC_DEFAULT_OPUS_MODEL_X": "n",
    }  # fmt: skip
    assert credentials_select.launch_env(environ) == {
        name: Variable(value, ("host", name))
        for name, value in (("ANTHROPIC_MODEL", "opus"), ("ANTHROPIC_DEFAULT_OPUS_MODEL", "o"), ("API_TIMEOUT_MS", "1"))
    }  # fmt: skip
    with pytest.raises(UsageError):
        credentials_select.launch_env({"ANTHROPIC_MODEL": "a\x1b"})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8765", "http://192.168.5.2:8765"),
        ("http://127.1.2.3/v1?x=1", "http://192.168.5.2/v1?x=1"),
        ("https://[::1]:443/a/b", "https://192.168.5.2:443/a/b"),
        ("http://u:p@LOCALHOST.:80", "http://u:p@192.168.5.2:80"),
        ("https://api.example.com:8443/x", "https://api.example.com:8443/x"),
        ("http://localhost.example.com", "http://localhost.example.com"),
        ("http://10.0.0.1", "http://10.0.0.1"),
    ],
)
def test_loopback_becomes_the_host(url: str, expected: str) -> None:
    found = credentials_select.launch_env({"ANTHROPIC_BASE_URL": url})["ANTHROPIC_BASE_URL"]
    assert found.value == expected
    secret = "@" in url or "?" in url
    where = ("host", "ANTHROPIC_BASE_URL") if url == expected else ("text", expected)
    assert found.origin == (None if secret and url != expected else where)


def test_a_url_that_is_none() -> None:
    with pytest.raises(UsageError, match="ANTHROPIC_BASE_URL"):
        credentials_select.guest_url("http://localhost:notaport")


# -- what comes back -------------------------------------------------------------------------------


@pytest.mark.spec("5.3")
@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{}", b"[]", b"\xff", b'{"claudeAiOauth": 1}', b"[" * 70_000,
        oauth(hours=-30), oauth(hours=25), oauth(hours=24 * 399), oauth(expiresAt="soon"), oauth(expiresAt=True), oauth(expiresAt=1.5),
        oauth(access="short"), oauth(access="with blank inside"), oauth(access="x" * 9000), oauth(refreshToken=None),
        oauth(scopes="all"), oauth(scopes=["\x1b[2J"]), oauth(scopes=["a"] * 51), oauth(subscriptionType={"a": 1}),
        oauth() + b" " * 70_000,
    ],
)  # fmt: skip
def test_what_is_not_plausible_is_not_taken(home: Path, raw: bytes) -> None:
    warnings: list[str] = []
    strategy = from_file(home, oauth(1), warnings)
    handed(strategy, "vm")
    assert strategy.collect(raw, "vm") is None
    assert strategy.store.read() == oauth_at(home)
    assert not any("sk-ant" in text for text in warnings)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_bytes_of_a_guest_raise(raw: bytes) -> None:
    assert credentials_stores.parse(raw) is None and credentials_stores.account_of(raw) == ""


def test_a_newer_one_is_taken_and_the_previous_kept(home: Path) -> None:
    old = json.dumps({**json.loads(oauth(1)), "mcpOAuth": {"mine": 1}}).encode()
    new = json.loads(oauth(5, access="sk-ant-oat01-newnewnew", unknown="dropped"))
    strategy = from_file(home, old)
    handed(strategy, "vm-a", "vm-b")
    taken = strategy.collect(json.dumps({**new, "mcpOAuth": {"evil": 1}}).encode(), "vm-a")
    path = home / "settings" / ".credentials.json"
    assert taken == Collected("vm-a", str(path))
    stored = json.loads(path.read_bytes())
    assert stored["mcpOAuth"] == {"mine": 1} and "unknown" not in stored["claudeAiOauth"]
    assert stored["claudeAiOauth"]["accessToken"] == "sk-ant-oat01-newnewnew"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.with_name(".credentials.json.previous").read_bytes() == old
    assert strategy.collect(old, "vm-b") is None, "what it was handed before is nothing new"


def test_the_first_login_is_taken_and_a_link_stays_a_link(home: Path) -> None:
    target = home / "elsewhere.json"
    (home / "settings" / ".credentials.json").symlink_to(target)
    assert from_file(home).collect(oauth(), "vm") is not None
    assert (home / "settings" / ".credentials.json").is_symlink() and credentials_stores.parse(
        target.read_bytes()
    )


def test_failure_is_a_warning_without_the_secret(home: Path) -> None:
    warnings: list[str] = []
    path = home / "settings" / ".credentials.json"
    path.mkdir()
    strategy = from_file(home, None, warnings)
    assert strategy.hand_over() is None
    assert strategy.collect(oauth(), "vm") is None
    assert warnings and "sk-ant" not in "".join(warnings)


def test_a_host_file_of_unknown_form_is_said_and_not_handed_over(home: Path) -> None:
    warnings: list[str] = []
    assert from_file(home, b"{}", warnings).hand_over() is None and warnings


def test_a_guest_gets_only_what_it_lacks(home: Path) -> None:
    strategy = from_file(home, oauth(2))
    there = json.dumps({"mcpOAuth": {"its": 1}, **json.loads(oauth(1, "sk-ant-oat01-own-older"))}).encode()
    assert strategy.bring(there, "vm") is None, "its own, which nobody has decided about"
    content = strategy.bring(None, "vm")
    assert credentials_stores.parse(content) == credentials_stores.parse(oauth_at(home))
    assert strategy.bring(content, "vm") is None
    (home / "settings" / ".credentials.json").write_bytes(oauth(3, "sk-ant-oat01-of-the-host"))
    with_more = json.dumps({"mcpOAuth": {"its": 1}, **json.loads(content or b"")}).encode()
    merged = strategy.bring(with_more, "vm")
    assert merged is not None and json.loads(merged)["mcpOAuth"] == {"its": 1}
    assert credentials_stores.parse(merged) == credentials_stores.parse(oauth_at(home))
    assert strategy.bring(oauth(-50, "sk-ant-oat01-forgotten"), "other") is not None, "no longer valid there"


# -- the keychain ----------------------------------------------------------------------------------


@pytest.mark.spec("5.3")
def test_the_keychain_is_written_by_stdin_only() -> None:
    runner = FakeRunner()
    store = credentials_stores.KeychainStore(runner, "ada")  # type: ignore[arg-type]
    store.replace(b'{"new": 1}', b'{"old": 1}')
    assert [argv for argv, _ in runner.calls] == [("security", "-i")] * 2
    previous, new = (stdin.decode() for _, stdin in runner.calls)
    assert previous.startswith('add-generic-password -U -a "ada" -s "Claude Code-credentials.previous" -X "')
    value = b'{"new": 1}'.hex()
    assert new == f'add-generic-password -U -a "ada" -s "Claude Code-credentials" -X "{value}"\n'


def test_the_keychain_is_read_with_an_argv_without_secrets() -> None:
    runner = FakeRunner(b'{"a": 1}')
    store = credentials_stores.KeychainStore(runner, "ada")  # type: ignore[arg-type]
    assert store.read() == b'{"a": 1}'
    assert runner.calls[0][0] == (
        "security", "find-generic-password", "-a", "ada", "-s", "Claude Code-credentials", "-w",
    )  # fmt: skip
    runner.item = b'{"a": 1}'.hex().encode()
    assert store.read() == b'{"a": 1}'
    runner.item = None
    assert store.read() is None


def test_what_the_keychain_cannot_take_is_an_error() -> None:
    with pytest.raises(ClaudeSandboxError):
        credentials_stores.KeychainStore(FakeRunner(stderr=b"denied"), "ada").replace(b"x", None)  # type: ignore[arg-type]
    with pytest.raises(ClaudeSandboxError, match="too large"):
        credentials_stores.KeychainStore(FakeRunner(), "ada").replace(b"x" * 4000, None)  # type: ignore[arg-type]
    with pytest.raises(ClaudeSandboxError, match="name"):
        credentials_stores.KeychainStore(FakeRunner(), 'a"\n').replace(b"x", None)  # type: ignore[arg-type]


# -- between running sandboxes ---------------------------------------------------------------------


@pytest.mark.spec("5.3")
def test_a_login_in_one_sandbox_reaches_the_others(home: Path) -> None:
    guests = {name: ShGuest(home / name) for name in "abc"}
    guests["a"].file.parent.mkdir()
    guests["a"].file.write_bytes(oauth(6))
    guests["b"].file.parent.mkdir()
    guests["b"].file.write_bytes(b"garbage")
    strategy = from_file(home, oauth(1, "sk-ant-oat01-of-the-host"))
    handed(strategy, *guests)
    taken = credentials_share.sync_running(guests, strategy, pytest.fail)
    assert [item.sandbox for item in taken] == ["a"]
    for guest in guests.values():
        assert credentials_stores.parse(guest.file.read_bytes()) == credentials_stores.parse(
            oauth_of(guests["a"])
        )
        assert not list(guest.file.parent.glob(".credentials.??????"))
    assert guests["b"].file.stat().st_mode & 0o777 == 0o600
    assert credentials_share.sync_running(guests, from_file(home), pytest.fail) == []


def oauth_at(home: Path) -> bytes:
    return (home / "settings" / ".credentials.json").read_bytes()


def oauth_of(guest: ShGuest) -> bytes:
    return guest.file.read_bytes()


def test_a_changed_credential_is_not_overwritten(home: Path) -> None:
    guest = ShGuest(home / "g")
    guest.file.parent.mkdir()
    guest.file.write_bytes(b"new")
    result = guest.run(guest_script("credential-put.sh"), input=b"0" * 64 + b"\nmine")
    assert result.returncode == 75 and guest.file.read_bytes() == b"new"


def test_a_guest_that_hangs_or_fails_costs_no_more_than_the_budget(home: Path) -> None:
    class Hanging:
        def run(self, script: str, *arguments: str, input: bytes = b"", timeout: float = 60) -> Result:
            time.sleep(5)
            return Result(0)

    class Failing:
        def run(self, script: str, *arguments: str, input: bytes = b"", timeout: float = 60) -> Result:
            raise GuestConnectionError("No ssh connection to f.")

    warnings: list[str] = []
    began = time.monotonic()
    guests: dict[str, Any] = {"h": Hanging(), "f": Failing(), "a": ShGuest(home / "a")}
    strategy = from_file(home, oauth(1))
    handed(strategy, *guests)
    assert credentials_share.sync_running(guests, strategy, warnings.append, budget=1.0) == []
    assert time.monotonic() - began < 3
    assert len(warnings) == 2


def test_a_token_needs_no_rounds() -> None:
    assert credentials_share.sync_running({"a": None}, TokenLogin("X", Variable("y")), pytest.fail) == []  # type: ignore[dict-item]

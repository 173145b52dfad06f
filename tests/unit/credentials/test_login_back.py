"""A login that comes back from a guest: which one the host takes, and what a false one can do (docs/security.md)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox.credentials import select as credentials_select
from _claude_sandbox.credentials import share as credentials_share
from _claude_sandbox.credentials import stores as credentials_stores
from _claude_sandbox.credentials.exchange import CredentialLogin
from _claude_sandbox.credentials.record import LoginRecord
from tests.support.credentials import FakeRunner, ShGuest, oauth

MINE, THEIRS = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"


def made(tag: str, hours: float = 8, **more: Any) -> bytes:
    return oauth(hours, f"sk-ant-oat01-{tag}-{tag}", refreshToken=f"sk-ant-ort01-{tag}-{tag}", **more)


@dataclass
class Host:
    """A host with one shared login, sandboxes that were given it, and a user who may be asked."""

    home: Path
    answer: bool | None = None
    warnings: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.home / "settings" / ".credentials.json"

    def login(self, directory: Path | None = None, **environ: str) -> CredentialLogin:
        chosen = credentials_select.select(
            environ,
            directory or self.home / "settings",
            runner=FakeRunner(),  # type: ignore[arg-type]
            state_dir=self.home / "state",
            warn=self.warnings.append,
            ask=self.ask,
            platform="linux",
        )
        assert isinstance(chosen, CredentialLogin)
        return chosen

    def ask(self, question: str) -> bool | None:
        self.questions.append(question)
        return self.answer

    def has(self, tag: str) -> bool:
        return f"sk-ant-oat01-{tag}-{tag}" in self.file.read_text()

    def launch(self, sandbox: str, there: bytes | None = None) -> bytes | None:
        """What the sandbox's guest has after a launch."""
        return self.login().bring(there, sandbox) or there


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / ".credentials.json").write_bytes(made("first", 1))
    return Host(tmp_path)


def test_a_refresh_of_what_was_handed_over_is_taken_unasked(host: Host) -> None:
    host.launch("a")
    assert host.login().collect(made("second"), "a", MINE) is not None
    assert host.has("second") and not host.questions and not host.warnings


@pytest.mark.spec("5.3")
def test_an_expiry_that_no_issuer_gives_is_refused_and_said(host: Host) -> None:
    host.launch("a")
    assert host.login().collect(made("evil", 399 * 24), "a", THEIRS) is None
    assert host.has("first") and "dates" in host.warnings[0] and "sk-ant" not in host.warnings[0]


@pytest.mark.spec("5.3")
def test_another_account_is_a_question_on_a_terminal(host: Host) -> None:
    host.launch("a")
    host.login().collect(made("second"), "a", MINE)
    host.answer = False
    assert host.login().collect(made("evil"), "a", THEIRS) is None
    assert host.has("second") and "another account" in host.questions[0]
    host.login().collect(made("evil-again"), "a", THEIRS)
    assert len(host.questions) == 1, "with no, that sandbox has a login of its own"
    assert host.launch("a", there := made("evil")) == there, "and keeps it"
    assert not host.login().shares("a") and host.launch("a") and host.login().shares("a"), "until it has none"
    host.launch("b")
    host.answer = True
    assert host.login().collect(made("other"), "b", THEIRS) is not None and host.has("other")


def test_another_account_is_a_warning_without_a_terminal(host: Host) -> None:
    host.launch("a")
    host.login().collect(made("second"), "a", MINE)
    assert host.login().collect(made("evil"), "a", THEIRS) is None
    assert host.has("second") and "login --take" in host.warnings[0] and "sk-ant" not in host.warnings[0]
    assert host.launch("a", there := made("evil")) == there, "nothing in the guest is lost either"
    assert host.login().shares("a"), "nobody has decided that it keeps its own"


def test_an_account_is_known_from_the_last_one_that_named_it(host: Host) -> None:
    host.launch("a")
    host.login().collect(made("second"), "a", MINE)
    assert host.login().collect(made("third"), "a") is not None, "a refresh that names none is the same one's"
    assert host.login().collect(made("evil"), "a", THEIRS) is None and "another account" in host.questions[0]
    host.file.write_bytes(made("hosts"))  # but the account of what the user has replaced is forgotten
    host.launch("b")
    assert host.login().collect(made("fourth"), "b") is not None
    assert host.login().collect(made("fifth"), "b", THEIRS) is not None and len(host.questions) == 1


def test_nobody_can_agree_to_an_expiry_that_no_issuer_gives(host: Host) -> None:
    host.launch("a")
    value = credentials_stores.parse(made("evil", 399 * 24))
    assert (
        value is not None and host.login().settle(value, "a", MINE, take=True) is None and host.has("first")
    )


def test_another_plan_is_another_account_too(host: Host) -> None:
    host.launch("a")
    assert host.login().collect(made("evil", subscriptionType="pro"), "a") is None and host.questions


def test_a_sandbox_that_was_handed_nothing_changes_nothing_unasked(host: Host) -> None:
    assert host.login().collect(made("evil"), "stranger", MINE) is None and host.has("first")
    assert "does not descend" in host.questions[0]
    guests = {"stranger": ShGuest(host.home / "g")}
    guests["stranger"].file.parent.mkdir()
    there = made("evil")
    guests["stranger"].file.write_bytes(there)
    assert credentials_share.sync_running(guests, host.login(), host.warnings.append) == []
    assert guests["stranger"].file.read_bytes() == there and len(host.questions) == 1, "left alone"


def test_the_login_of_other_settings_is_neither_taken_nor_overwritten(host: Host) -> None:
    other = host.home / "other"
    other.mkdir()
    (other / ".credentials.json").write_bytes(made("work"))
    content = host.login(other).bring(None, "at-work")
    assert not host.login().shares("at-work") and host.login(other).shares("at-work")
    assert host.login().collect(content or b"", "at-work", THEIRS) is None and host.has("first")
    assert host.login().collect(made("refreshed"), "at-work") is None and host.has("first")
    assert host.launch("at-work", there := made("refreshed")) == there, "Claude got that one at work"


def test_a_false_one_of_the_same_account_is_replaced_by_the_next_genuine_login(host: Host) -> None:
    """What it names and how long it claims to live is the guest's word: neither makes it last."""
    host.launch("evil"), host.launch("good")
    first = made("first", 1)
    assert host.login().collect(made("false", 23.9), "evil", MINE) is not None
    there = host.launch("good", first)
    assert there is not None and b"false" in there
    assert host.login().collect(made("genuine", 8), "good", MINE) is not None
    assert host.has("genuine")
    assert b"genuine" in (host.launch("evil", made("false", 23.9)) or b"")


def test_a_genuine_login_wins_also_in_a_sandbox_that_the_false_one_never_reached(host: Host) -> None:
    host.launch("evil"), host.launch("good")
    host.login().collect(made("false", 23.9), "evil", MINE)
    assert host.login().collect(made("genuine", 8), "good", MINE) is not None and host.has("genuine")


def test_what_the_user_puts_on_the_host_wins(host: Host) -> None:
    host.launch("a")
    host.file.write_bytes(made("hosts", 2))
    assert host.login().collect(made("false", 23.9), "a", MINE) is None and host.has("hosts")
    assert b"hosts" in (host.launch("a", made("false", 23.9)) or b"")
    host.file.write_bytes(
        made("first", 1)
    )  # the one from before: what descends from the next one is not its heir
    assert host.login().collect(made("false", 23.9), "a", MINE) is None and host.has("first")
    # Nor does it matter whose the one was that the user has replaced.
    host.launch("a")
    assert host.login().collect(made("second"), "a", MINE) is not None
    host.file.write_bytes(made("hosts-again", 2))
    assert host.login().collect(made("third"), "a", THEIRS) is None and not host.questions
    assert host.has("hosts-again")


def test_an_expired_one_gives_way(host: Host) -> None:
    host.launch("a")
    assert host.login().collect(made("old", -1), "a", MINE) is None
    assert b"first" in (host.launch("a", made("old", -1)) or b"")


@pytest.mark.parametrize("days", [-400, -2, 2, 400])
def test_a_clock_that_is_wrong_loses_no_login(host: Host, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    host.launch("a")
    genuine, right = made("genuine"), credentials_stores.now_ms()
    monkeypatch.setattr(credentials_stores, "now_ms", lambda: right + days * 24 * 3600 * 1000)
    host.login().collect(genuine, "a", MINE)
    assert host.has("first") and host.launch("a", genuine) == genuine, "not taken, and left where it is"
    monkeypatch.setattr(credentials_stores, "now_ms", lambda: right)
    assert host.login().collect(genuine, "a", MINE) is not None and host.has("genuine")


def test_the_first_login_of_all_is_taken(host: Host) -> None:
    host.file.unlink()
    host.launch("a")
    assert host.login().collect(made("new"), "a", MINE) is not None and host.has("new")


def test_but_not_from_just_anywhere(host: Host) -> None:
    """Where the host has none, the rules are those of one that it has."""
    host.launch("a")
    host.login().collect(made("false"), "a", MINE)
    assert host.login().undo() == "a"
    other = host.home / "other"
    other.mkdir()
    (other / ".credentials.json").write_bytes(made("work"))
    host.login(other).bring(None, "at-work")
    host.file.unlink()
    for value, sandbox in ((made("old", -25), "b"), (made("again"), "a"), (made("work2"), "at-work")):
        assert host.login().collect(value, sandbox, MINE) is None and not host.file.exists()
    assert (
        "undone" in host.questions[0] and "does not descend" in host.questions[1] and len(host.questions) == 2
    )


@pytest.mark.parametrize("step", ["the record", "the store", "the end"])
def test_killed_while_it_is_taken_over_the_next_run_takes_it(
    host: Host, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Killed(BaseException):
        pass

    saves: list[int] = []

    def save(record: LoginRecord, file: Path) -> None:
        saves.append(1)
        if len(saves) == (1 if step == "the record" else 2 if step == "the end" else 0):
            raise Killed
        whole(record, file)

    def replace(store: Any, new: bytes, previous: bytes | None) -> None:
        raise Killed

    whole = LoginRecord.save
    host.launch("a")
    with monkeypatch.context() as patch:
        patch.setattr(LoginRecord, "save", save)
        if step == "the store":
            patch.setattr(credentials_stores.FileStore, "replace", replace)
        with pytest.raises(Killed):
            host.login().collect(made("second"), "a", MINE)
    assert host.login().collect(made("third"), "a", MINE) is not None and host.has("third")


# -- undo --------------------------------------------------------------------------------------------


@pytest.mark.spec("5.3")
def test_undo_puts_back_what_was_there_before_that_sandbox_changed_it(host: Host) -> None:
    host.launch("evil"), host.launch("good")
    host.login().collect(made("false-1"), "evil", MINE)
    host.login().collect(made("false-2"), "evil", MINE)
    assert host.login().undo() == "evil"
    assert host.has("first") and host.file.stat().st_mode & 0o777 == 0o600
    assert b"first" in (host.launch("evil", made("false-2")) or b"")
    assert host.login().collect(made("false-3"), "evil", MINE) is None and "undone" in host.questions[0]
    assert host.login().collect(made("genuine"), "good", MINE) is not None
    assert host.login().undo() == "good" and host.has("first")


def test_undo_takes_back_one_sandbox_s_changes_and_no_one_else_s(host: Host) -> None:
    host.launch("a"), host.launch("b")
    host.login().collect(made("second"), "a", MINE)
    host.launch("b", made("first", 1))
    assert host.login().collect(made("third"), "b", MINE) is not None
    assert host.login().undo() == "b" and host.has("second")
    host.file.write_bytes(made("hosts"))
    host.launch("a")
    host.login().collect(made("fourth"), "a", MINE)
    host.file.write_bytes(made("hosts-again"))
    host.launch("a")
    assert host.login().collect(made("fifth"), "a", MINE) is not None
    assert host.login().undo() == "a" and host.has("hosts-again"), "what the user put there is not undone"


def test_undo_after_the_user_changed_the_host_s_changes_nothing(host: Host) -> None:
    host.launch("a")
    host.login().collect(made("second"), "a", MINE)
    host.file.write_bytes(made("hosts"))
    assert host.login().undo() is None and host.has("hosts")


def test_nothing_to_undo(host: Host) -> None:
    assert host.login().undo() is None


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"schema": 1}', b'{"schema": 1, "sandboxes": {"a": 1}, "stores": {}}',
                                 b'{"schema": 1, "sandboxes": {"a": {"handed": 5}}, "stores": {}}'])  # fmt: skip
def test_without_its_record_the_host_asks(host: Host, raw: bytes) -> None:
    host.launch("a")
    (host.home / "state" / "login.json").write_bytes(raw)
    assert LoginRecord.load(host.home / "state" / "login.json") == LoginRecord()
    assert host.login().collect(made("second"), "a", MINE) is None and host.questions


def test_the_record_holds_no_secret(host: Host) -> None:
    host.launch("a")
    host.login().collect(made("second"), "a", MINE)
    file = host.home / "state" / "login.json"
    assert "sk-ant" not in file.read_text() and file.stat().st_mode & 0o777 == 0o600


# -- the user's own Claude ---------------------------------------------------------------------------


@pytest.mark.parametrize("linked", [False, True])
def test_the_user_s_own_store_is_never_written(host: Host, linked: bool) -> None:
    own = host.home / ".claude"
    own.mkdir()
    (own / ".credentials.json").write_bytes(made("own", 1))
    directory = host.home / "settings" if linked else own
    if linked:
        host.file.unlink()
        host.file.symlink_to(own / ".credentials.json")
    before = sorted((path.name, path.read_bytes()) for path in own.iterdir())
    chosen = host.login(directory)
    assert b"own" in (chosen.bring(None, "a") or b"")
    taken = chosen.collect(made("second"), "a", MINE)
    assert taken is not None and str(host.home / "state") in taken.where
    assert sorted((path.name, path.read_bytes()) for path in own.iterdir()) == before
    kept = Path(taken.where)
    assert kept.stat().st_mode & 0o777 == 0o600 and kept.parent.stat().st_mode & 0o777 == 0o700
    assert b"second" in (host.login(directory).bring(None, "b") or b""), "the other sandboxes get it"
    assert host.login(directory).undo() == "a"
    assert b"own" in (host.login(directory).hand_over() or b"")
    assert sorted((path.name, path.read_bytes()) for path in own.iterdir()) == before
    (own / ".credentials.json").write_bytes(made("relogin"))
    assert b"relogin" in (host.login(directory).hand_over() or b""), (
        "a login of the user's own counts at once"
    )


def test_claude_s_keychain_item_is_never_written(host: Host) -> None:
    class Keychain(FakeRunner):
        def run(self, command: Any, *, input: bytes = b"", **more: Any) -> Any:
            result = super().run(command, input=input, **more)
            return type(result)(44) if "claude-sandbox credentials" in command.argv else result

    runner = Keychain(made("own", 1))
    host.file.unlink()
    chosen = credentials_select.select(
        {"USER": "ada"}, host.home / "settings", runner=runner, state_dir=host.home / "state",  # type: ignore[arg-type]
        warn=host.warnings.append, platform="darwin",
    )  # fmt: skip
    assert b"own" in (chosen.bring(None, "a") or b"")
    taken = chosen.collect(made("second"), "a", MINE)
    assert taken is not None and "claude-sandbox credentials" in taken.where
    written = [text for argv, text in runner.calls if argv == ("security", "-i")]
    assert len(written) == 2 and not any(b'"Claude Code-credentials' in text for text in written)


# -- what the guest says of itself -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "account"),
    [
        (json.dumps({"oauthAccount": {"accountUuid": MINE, "emailAddress": "a@b"}}), MINE),
        (json.dumps({"a": {"b": 1}, "oauthAccount": {"x": 1, "accountUuid": MINE}}, indent=2), MINE),
        (json.dumps({"oauthAccount": {"accountUuid": "\x1b]0;x"}}), ""),
        (json.dumps({"accountUuid": MINE}), ""), ("garbage", ""), ("", ""), (None, ""),
    ],
)  # fmt: skip
def test_the_account_that_a_guest_names(tmp_path: Path, text: str | None, account: str) -> None:
    guest = ShGuest(tmp_path / "g")
    if text is not None:
        (guest.home / ".claude.json").write_text(text)
    guest.file.parent.mkdir()
    guest.file.write_bytes(made("x"))
    assert credentials_share.look(guest) == (account, credentials_stores.parse(guest.file.read_bytes()))
    assert credentials_stores.account_of(text.encode() if text is not None else None) == account


def test_a_question_does_not_count_against_the_time_for_the_others(host: Host) -> None:
    class Slow(Host):
        def ask(self, question: str) -> bool | None:
            time.sleep(2.2)
            return True

    slow = Slow(host.home)
    guests = {name: ShGuest(host.home / name) for name in ("a", "b")}
    for name in guests:
        slow.launch(name)
        guests[name].file.parent.mkdir()
    guests["a"].file.write_bytes(made("other", subscriptionType="pro"))
    assert len(credentials_share.sync_running(guests, slow.login(), pytest.fail, budget=2.0)) == 1
    assert b"other" in guests["b"].file.read_bytes()

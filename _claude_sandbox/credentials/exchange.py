"""The credential that sandboxes of the same settings share: handed over, collected, undone (spec 5.3)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _claude_sandbox.credentials import stores
from _claude_sandbox.credentials.record import (
    UNDO_MS,
    LoginRecord,
    SandboxLogin,
    StoreChange,
    Verdict,
    credential_hash,
    judge,
)
from _claude_sandbox.credentials.stores import Store
from _claude_sandbox.credentials.variables import Variable
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.lima.context import Confirm, nobody
from _claude_sandbox.system import files

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Collected:
    """A credential that came back: which sandbox changed it and where on the host it is now."""

    sandbox: str
    where: str


@dataclass(frozen=True)
class CredentialLogin:
    """The host's credential, handed over and collected. `state` is our state directory.

    `ask` puts a yes/no question to the user; None when there is nobody to ask.
    """

    store: Store
    state: Path
    warn: Warn
    ask: Confirm = nobody

    @property
    def description(self) -> str:
        return self.store.where if self.hand_over() is not None else "none: log in in the sandbox with /login"

    def environment(self) -> dict[str, Variable]:
        return {}

    def hand_over(self) -> bytes | None:
        raw = self._read()
        value = stores.parse(raw)
        if raw is not None and value is None:
            self.warn(f"{self.store.where} holds no credential of a form that we know: not handed over.")
        return None if value is None else stores.encode(value)

    def bring(self, there: bytes | None, sandbox: str, account: str = "") -> bytes | None:
        mine, value = stores.parse(self._read()), stores.parse(there)
        try:
            with self._recorded() as record:
                row = record.sandboxes.get(sandbox) or SandboxLogin(self.store.where)
                wanted = mine is not None and (
                    value is None
                    or (value != mine and self._judge(record, value, account, mine, sandbox) is Verdict.OURS)
                )
                if mine is not None and (wanted or value == mine):
                    row = row.with_handed(credential_hash(mine))
                own = row.own and value is not None
                record.sandboxes[sandbox] = replace(row, store=self.store.where, own=own).met_at(
                    stores.now_ms()
                )
        except (OSError, ClaudeSandboxError) as error:
            self.warn(f"The login was not brought to {sandbox}: {_reason(error)}")
            return None
        return stores.encode(mine, there) if mine is not None and wanted else None

    def shares(self, sandbox: str) -> bool:
        row = LoginRecord.load(self._record).sandboxes.get(sandbox)
        return row is not None and row.store == self.store.where and not row.own

    def collect(self, fetched: bytes, sandbox: str, account: str = "") -> Collected | None:
        value = stores.parse(fetched)
        if value is None:
            return None
        verdict, taken = self._collect(value, sandbox, account)
        if verdict is Verdict.DATES:
            self.warn(f"The login in {sandbox} was not taken over: {verdict.value}. Is the clock right?")
        if not verdict.asks:
            return taken
        answer = self.ask(_question(sandbox, verdict))
        if answer is None:
            self.warn(
                f"The login in {sandbox} was not taken over: {verdict.value}. To use it in all sandboxes, "
                "run `claude-sandbox login --take` in its project."
            )
        return self.settle(value, sandbox, account, take=answer) if answer is not None else None

    def settle(self, value: dict[str, Any], sandbox: str, account: str, *, take: bool) -> Collected | None:
        """What a person decided about a guest's credential: take it over, or let that sandbox keep it alone."""
        if take:
            return self._collect(value, sandbox, account, agreed=True)[1]
        try:
            with self._recorded() as record:
                row = record.sandboxes.get(sandbox) or SandboxLogin(self.store.where)
                record.sandboxes[sandbox] = replace(row, own=True)
        except (OSError, ClaudeSandboxError) as error:
            self.warn(f"Not noted that {sandbox} keeps its own login: {_reason(error)}")
        return None

    def undo(self) -> str | None:
        """Put the previous credential back; the sandbox whose change that undoes (empty: not known).

        None when none is kept, or the host's own has changed since. What comes from that sandbox is asked
        about from then on. Raises OSError and ClaudeSandboxError.
        """
        with self._recorded() as record:
            before, now = self.store.previous(), self.store.read()
            change, current = record.stores.get(self.store.where), stores.parse(now)
            changed_since = change is not None and (
                current is None or change.mark != credential_hash(current)
            )
            if before is None or stores.parse(before) is None or changed_since:
                return None
            # In this order a kill in between leaves the undone state, without a way back to the wrong one.
            self.store.replace(before, None)
            if now is not None:
                self.store.keep(now)
            by = record.stores.pop(self.store.where, StoreChange()).by
            if by in record.sandboxes:
                record.sandboxes[by] = replace(record.sandboxes[by], undone=True)
        return by

    def _collect(
        self, value: dict[str, Any], sandbox: str, account: str, *, agreed: bool = False
    ) -> tuple[Verdict, Collected | None]:
        try:
            with self._recorded() as record:
                raw = self.store.read()
                if agreed and sandbox in record.sandboxes:
                    record.sandboxes[sandbox] = replace(record.sandboxes[sandbox], own=False)
                verdict = self._judge(record, value, account, stores.parse(raw), sandbox)
                if verdict is Verdict.TAKE or (agreed and verdict.asks):
                    self._take(record, value, account, sandbox, raw)
                    return Verdict.TAKE, Collected(sandbox, self.store.where)
        except (OSError, ClaudeSandboxError) as error:
            self.warn(
                f"The login made in {sandbox} could not be stored in {self.store.where}: {_reason(error)}"
            )
            verdict = Verdict.LEAVE
        return verdict, None

    def _judge(
        self,
        record: LoginRecord,
        value: dict[str, Any],
        account: str,
        current: dict[str, Any] | None,
        sandbox: str,
    ) -> Verdict:
        where = self.store.where
        change = record.stores.get(where, StoreChange())
        row, now = record.sandboxes.get(sandbox), stores.now_ms()
        return judge(value, account, current=current, row=row, store=where, change=change, now=now)

    def _take(
        self, record: LoginRecord, value: dict[str, Any], account: str, sandbox: str, raw: bytes | None
    ) -> None:
        where, now, current = self.store.where, stores.now_ms(), stores.parse(raw)
        change = record.stores.get(where, StoreChange())
        valid = current is not None and change.mark == credential_hash(current)
        again = valid and change.by == sandbox and 0 <= now - change.since < UNDO_MS
        known = change.account if valid else ""
        record.stores[where] = StoreChange(
            credential_hash(value), account or known, sandbox, change.since if again else now
        )
        # Before the store: killed in between, the guest's is still what was not taken over yet.
        record.save(self._record)
        try:
            self.store.replace(stores.encode(value, raw), None if again else raw)
        except (OSError, ClaudeSandboxError):
            record.stores[where] = change
            record.save(self._record)
            raise
        row = (record.sandboxes.get(sandbox) or SandboxLogin(where)).with_handed(credential_hash(value))
        record.sandboxes[sandbox] = replace(row, store=where, own=False, undone=False, met=now)

    @property
    def _record(self) -> Path:
        return self.state / "login.json"

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[LoginRecord]:
        """The record, under the lock; written when the block has ended well and changed it."""
        with files.lock(self.state / "locks" / "credential.lock", timeout=5):
            record, before = LoginRecord.load(self._record), LoginRecord.load(self._record)
            yield record
            if record != before:
                record.save(self._record)

    def _read(self) -> bytes | None:
        try:
            return self.store.read()
        except (OSError, ClaudeSandboxError) as error:
            self.warn(f"Cannot read {self.store.where}: {_reason(error)}")
            return None


def _reason(error: Exception) -> object:
    return error.strerror if isinstance(error, OSError) else error


def _question(sandbox: str, verdict: Verdict) -> str:
    return (
        f"{sandbox} has a login that is not this host's: {verdict.value}.\n"
        "With yes every sandbox of these settings uses it; with no it stays in that sandbox alone.\n"
        "Did you log in there yourself, and should all of them use it?"
    )

"""Which login each sandbox was handed, and what may come back: the rules of docs/security.md, and their record.

A guest writes every byte of the credential that it returns, the account that it names included. Nothing here
can prove that a credential was really issued: the rules bound what a false one does, and a person can undo it.
The record holds no secret, only hashes of tokens. Without it (lost, unreadable) more is asked, nothing is taken.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from _claude_sandbox.system import files, jsonio

SCHEMA = 1
KEPT = 8  # hashes of what one sandbox was handed last
MOST = 1000  # sandboxes in the record; the one that was met least recently is dropped
HOUR_MS = 3600 * 1000
# Bounds of expiresAt around the host's clock. Claude Code's access tokens live about 8 hours.
OLDEST, NEWEST = 24 * HOUR_MS, 24 * HOUR_MS
UNDO_MS = 24 * HOUR_MS  # all that one sandbox changes within this time is undone as one change


class Verdict(enum.Enum):
    """What a credential in a guest is.

    OURS: nothing new, the host's may replace it. TAKE: the host takes it over. LEAVE: the guest keeps it and
    nobody else gets it. The others are LEAVE until a person has agreed, for the reason that they name.
    """

    OURS = ""
    TAKE = "take"
    LEAVE = "leave"
    DATES = "its dates cannot be right by this host's clock"
    ACCOUNT = "it is another account's"
    UNKNOWN = "it does not descend from the one that this host handed over"
    UNDONE = "an earlier login from there was undone"

    @property
    def asks(self) -> bool:
        return self in (Verdict.ACCOUNT, Verdict.UNKNOWN, Verdict.UNDONE)


@dataclass(frozen=True)
class SandboxLogin:
    """One sandbox: the store on the host that its login comes from, and hashes of what it was handed, newest last.

    `own`: the user said that it keeps its own login. `undone`: a login from there was undone. `met`: ms.
    """

    store: str
    handed: tuple[str, ...] = ()
    own: bool = False
    undone: bool = False
    met: int = 0

    def with_handed(self, hashed: str) -> SandboxLogin:
        rest = tuple(each for each in self.handed if each != hashed)
        return replace(self, handed=(*rest, hashed)[-KEPT:])

    def met_at(self, now: int) -> SandboxLogin:
        """To the day: otherwise each launch would write the record."""
        return replace(self, met=now) if abs(now - self.met) > 24 * HOUR_MS else self


@dataclass(frozen=True)
class StoreChange:
    """The last credential that a store took from a guest: its hash, the account that was named with it,
    which sandbox it came from, and since when (ms) that one has been the last to change it."""

    mark: str = ""
    account: str = ""
    by: str = ""
    since: int = 0


@dataclass
class LoginRecord:
    sandboxes: dict[str, SandboxLogin] = field(default_factory=dict)
    stores: dict[str, StoreChange] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path) -> LoginRecord:
        """An empty one when there is none that can be read."""
        data = jsonio.read_object(file) or {}
        if data.get("schema") != SCHEMA:
            return cls()
        try:
            rows = {
                name: SandboxLogin(**{**row, "handed": tuple(row["handed"])})
                for name, row in data["sandboxes"].items()
            }
            return cls(rows, {where: StoreChange(**change) for where, change in data["stores"].items()})
        except (AttributeError, KeyError, TypeError):
            return cls()

    def save(self, file: Path) -> None:
        newest = sorted(self.sandboxes.items(), key=lambda item: item[1].met)[-MOST:]
        rows = {name: asdict(row) for name, row in newest}
        stores = {where: asdict(change) for where, change in self.stores.items()}
        files.write_json(file, {"schema": SCHEMA, "sandboxes": rows, "stores": stores})


def credential_hash(value: dict[str, Any]) -> str:
    """The hash by which a credential is known again."""
    return hashlib.sha256(f"{value['accessToken']}\n{value['refreshToken']}".encode()).hexdigest()


def judge(
    value: dict[str, Any],
    account: str,
    *,
    current: dict[str, Any] | None,
    row: SandboxLogin | None,
    store: str,
    change: StoreChange,
    now: int,
) -> Verdict:
    """What to do with the credential `value` of a guest that calls itself `account` (empty: it says none).

    `current` is what the host has in `store` now, `change` what the record knows of that; `now` in ms.
    The first rule that holds decides.
    """
    if row is not None and row.own:
        return Verdict.LEAVE
    if credential_hash(value) in (row.handed if row else ()) or (
        current is not None and credential_hash(value) == credential_hash(current)
    ):
        return Verdict.OURS
    if value["expiresAt"] > now + NEWEST:
        return Verdict.DATES
    if current is None:
        return _judge_first(value, row, store, now)
    stale = value["expiresAt"] < now <= current["expiresAt"]
    if row is None or row.store != store:
        return Verdict.OURS if stale else Verdict.UNKNOWN
    if differs_in_account(value, account, current, change):
        return Verdict.ACCOUNT
    # The user has replaced the host's one meanwhile: as with settings, the host's change wins.
    replaced = row.handed[-1:] != (credential_hash(current),) and change.mark != credential_hash(current)
    if stale or replaced:
        return Verdict.OURS
    if value["expiresAt"] < now - OLDEST:
        return Verdict.LEAVE
    return Verdict.UNDONE if row.undone else Verdict.TAKE


def _judge_first(value: dict[str, Any], row: SandboxLogin | None, store: str, now: int) -> Verdict:
    """The host has none yet."""
    if value["expiresAt"] < now - OLDEST:
        return Verdict.LEAVE
    if row is not None and row.undone:
        return Verdict.UNDONE
    return Verdict.TAKE if row is None or row.store == store else Verdict.UNKNOWN


def differs_in_account(
    value: dict[str, Any], account: str, current: dict[str, Any], change: StoreChange
) -> bool:
    """Whether the two say that they belong to different accounts. Who says nothing does not differ."""
    known = change.account if change.mark == credential_hash(current) else ""
    plans = [each.get("subscriptionType") for each in (value, current)]
    return bool(account and known and account != known) or bool(all(plans) and plans[0] != plans[1])

"""A session's variables, each with where its value comes from: what is written down must not hold a secret."""

from __future__ import annotations

from dataclasses import dataclass, field

Origin = tuple[str, str]
"""("host", VARIABLE), ("file", PATH), ("text", VALUE) or ("uuid", ""): what session.fast_shell can look up again."""


@dataclass(frozen=True)
class Variable:
    """`origin` is None where only the value, which may be a secret, could be written down."""

    value: str = field(repr=False)
    origin: Origin | None = None

    @classmethod
    def of_text(cls, value: str) -> Variable:
        """A value that is not a secret."""
        return cls(value, ("text", value))

    @classmethod
    def of_host(cls, name: str, there: str, value: str) -> Variable:
        """`value` is the host's variable `name`, which is `there`, or was made of it."""
        return cls(value, ("host", name) if value == there else None)

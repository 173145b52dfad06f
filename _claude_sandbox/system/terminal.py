"""The user's terminal: progress by rich (imported when it is first needed), questions, clean-up."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from _claude_sandbox.system.progress import Progress
from _claude_sandbox.system.text import printable

# Show the cursor; bracketed paste, mouse reports and the kitty keyboard off; plain colours.
_RESET = "\x1b[?25h\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[<u\x1b[0m"
_LEAVE_ALTERNATE = "\x1b[?1049l"


class _StageTimer:
    """How long a stage takes, and each thing that was said to go on in it."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()
        self._text = ""
        self._parts: dict[str, float] = {}

    def say(self, text: str) -> None:
        now = time.monotonic()
        if self._text:
            self._parts[self._text] = self._parts.get(self._text, 0) + now - self._last
        self._text, self._last = text, now

    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def parts(self) -> str:
        """` (boot 7.1, mounts 0.4)`; not what took no time to speak of, and no long lists."""
        self.say("")
        parts = [f"{_clean(text)} {spent:.1f}" for text, spent in self._parts.items() if spent >= 0.1]
        return f" ({', '.join(parts)})" if 1 < len(parts) <= 6 else ""


def _about(usual: float | None) -> str:
    """Rounded as it deserves: nobody knows it to the second."""
    if usual is None:
        return ""
    step = 1 if usual < 20 else 5 if usual < 120 else 30
    seconds = max(step, round(usual / step) * step)
    return f" (usually about {seconds} s)" if seconds < 120 else f" (usually about {seconds / 60:g} min)"


class _Printed(Progress):
    """What both ways to show progress have in common: each warning once."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._print_warning(_clean(text))

    def _print_warning(self, text: str) -> None:
        raise NotImplementedError

    def ask(self, question: str) -> bool | None:
        return ask(question)


class LineProgress(_Printed):
    """Plain lines on stderr, for logs and pipes; `quiet` leaves only warnings."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__()
        self.quiet = quiet

    @contextlib.contextmanager
    def stage(self, title: str, usual: float | None = None) -> Iterator[Callable[[str], None]]:
        timer = _StageTimer()
        self.note(f"{title} …{_about(usual)}")
        yield timer.say
        self.note(f"{title}: {timer.seconds():.1f} s{timer.parts()}")

    def note(self, text: str) -> None:
        if not self.quiet:
            print(_clean(text), file=sys.stderr, flush=True)

    def _print_warning(self, text: str) -> None:
        print(f"Warning: {text}", file=sys.stderr, flush=True)


class TerminalProgress(_Printed):
    """A spinner with what happens now and the seconds; a ✓ line with the time when it is done."""

    def __init__(self) -> None:
        super().__init__()
        self._status: Any = None  # how the current stage shows a text

    @functools.cached_property
    def _console(self) -> Any:
        from rich.console import Console

        return Console(stderr=True, highlight=False)

    @contextlib.contextmanager
    def stage(self, title: str, usual: float | None = None) -> Iterator[Callable[[str], None]]:
        from rich.progress import Progress as Bars
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        title = printable(title)
        if self._status is not None:  # a stage within a stage: its title becomes the text
            self._status(title)
            yield self._status
            return
        timer = _StageTimer()
        columns = (
            SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(),
            TextColumn(_about(usual), style="dim", markup=False),
        )  # fmt: skip
        with Bars(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(title, total=None)

            def say(text: str) -> None:
                text = printable(text)  # a tool's words, which may quote a guest
                timer.say(text)
                bars.update(task, description=f"{title}: {text}")

            self._status = say
            try:
                yield say
            finally:
                self._status = None
        times = f"{timer.seconds():.1f} s{_escape(timer.parts())}"
        self._console.print(f"[green]✓[/] {_escape(title)} [dim]{times}[/]")

    def note(self, text: str) -> None:
        self._console.print(_clean(text), markup=False)

    def _print_warning(self, text: str) -> None:
        self._console.print(f"[yellow]Warning:[/] {_escape(text)}")

    def ask(self, question: str) -> bool | None:
        return super().ask(question) if self._status is None else None


def _clean(text: str) -> str:
    """Notes may quote a guest or a file name: nothing in them may steer the terminal."""
    return printable(text, instead="?", keep="\n")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def interactive() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool | None:
    """A yes/no question, no by default; None without a terminal."""
    if not interactive():
        return None
    sys.stderr.write(f"{_clean(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def own_tty() -> bool:
    """Whether our terminal's device can be opened again, as tmux does (not after a change of user)."""
    try:
        os.close(os.open(os.ttyname(0), os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def restored() -> Iterator[Callable[[bool], None]]:
    """Leave the terminal as it was; call the yielded function with whether the session broke off."""
    import termios

    broken = [False]
    saved = None
    if sys.stdin.isatty():
        with contextlib.suppress(termios.error):
            saved = termios.tcgetattr(0)
    try:
        yield broken.append
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
        if sys.stdout.isatty():
            sys.stdout.write((_LEAVE_ALTERNATE if broken[-1] else "") + _RESET)
            sys.stdout.flush()

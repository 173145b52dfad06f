#!/usr/bin/env python3
"""Records the README's pictures: what real commands leave on a real terminal, as SVG.

    python docs/picture.py -C ~/projects/app status list 'shell -- uname -sr'
    python docs/picture.py -C ~/projects/app --ask 'Add a test for parse()' --until 'bypass permissions on' \\
        -o docs/claude.svg

The first runs commands one after the other (docs/terminal.svg). The second attaches Claude with the bare
command, types a request into it and records the screen when the text of `--until` is there (again): docs/claude.svg.
Its answers were made by the tests' stub of the API: start `tests/integration/stub_api.py --script FILE`
and set ANTHROPIC_BASE_URL to it and ANTHROPIC_AUTH_TOKEN to any word.

The terminal is tmux on a server of its own, so spinners, colours and cursor movements end up as a user
sees them. `--program` is what is run where the picture says `claude-sandbox`; `--replace FROM=TO`
changes paths of the recording machine in what is shown. Needs tmux and rich.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "status",
    "shell -- claude --version",
    "shell -- uname -sr",
    "shell -- touch /mnt/claude-sandbox/settings/CLAUDE.md",
    "info",
)
LINES = 200  # of the terminal; a longer output loses its beginning
SCREEN = 40  # lines of the terminal with Claude in it
READY = "bypass permissions on"  # Claude waits for a request
SETTLED = 5.0  # seconds without a change, after which the answer is whole
TIMEOUT = 900.0  # seconds for one command
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


class Terminal:
    """A terminal in which one line of shell runs; a context manager."""

    def __init__(self, line: str, directory: Path, width: int, height: int) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.argv = ("tmux", "-S", f"{self.place.name}/socket", "-f", "/dev/null")
        end = shlex.join([*self.argv, "wait-for", "-S", "end"])
        # The program must not think that it runs in the user's tmux.
        line = f"env -u TMUX -u TMUX_PANE {line}; {end}; exec sleep 3600"
        colours = ("set-option", "-g", "default-terminal", "tmux-256color", ";")
        size = ("-x", str(width), "-y", str(height))
        self.tmux("start-server", ";", *colours, "new-session", "-d", *size, "-c", str(directory), line)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run((*self.argv, "kill-server"), check=False)
        self.place.cleanup()

    def tmux(self, *words: str, timeout: float = TIMEOUT) -> str:
        done = subprocess.run((*self.argv, *words), check=True, capture_output=True, timeout=timeout)
        return done.stdout.decode()

    def end(self) -> None:
        """Wait until the line has ended."""
        self.tmux("wait-for", "end")

    def screen(self, *options: str) -> list[str]:
        return self.tmux("capture-pane", "-p", *options).rstrip().splitlines()

    def wait_for(self, text: str, still: float = 0) -> None:
        """Until the text is on the screen, and for `still` seconds nothing has moved there."""
        deadline, last, since = time.monotonic() + TIMEOUT, [""], time.monotonic()
        while True:
            shown = self.screen("-e") if still else self.screen()
            if shown != last:
                last, since = shown, time.monotonic()
            if any(text in line for line in self.screen()) and time.monotonic() - since >= still:
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"{text!r} never came on the screen:\n" + "\n".join(shown))
            time.sleep(0.2)

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)
        self.wait_for(text)
        self.tmux("send-keys", "Enter")


def run(program: str, command: str, directory: Path, width: int) -> list[str]:
    """The terminal's contents after `program command`, line by line, with its colour codes."""
    with Terminal(f"{program} {command}", directory, width, LINES) as terminal:
        terminal.end()
        return terminal.screen("-e")


def ask(program: str, request: str, until: str, directory: Path, width: int) -> list[str]:
    """Claude's own screen in a sandbox after a request, with the colour codes; Claude is ended afterwards."""
    with Terminal(f"{program} --new", directory, width, SCREEN) as terminal:
        terminal.wait_for(READY, still=3)
        terminal.type(request)
        terminal.wait_for(until, still=SETTLED)
        shown = terminal.screen("-e")
        terminal.type("/exit")
        terminal.tmux("send-keys", "Enter")  # the first may only have completed the word
        terminal.end()
    return shown


def picture(recorded: Sequence[tuple[str | None, list[str]]], width: int, title: str) -> str:
    """The SVG of commands and their output; without a command it is a whole screen."""
    with open("/dev/null", "w") as nowhere:
        console = Console(
            record=True, width=width, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        for number, (command, lines) in enumerate(recorded):
            if number:
                console.print()
            if command is not None:
                typed = f"claude-sandbox {command}".rstrip()
                console.print(Text.assemble(("$ ", "bold green"), (typed, "bold")))
            for line in lines:
                console.print(Text.from_ansi(line), overflow="ignore", no_wrap=True, crop=True)
        svg = console.export_svg(title=title, unique_id="terminal")
    # rich's leading no-break spaces are blanks to some renderers, which drop them.
    svg = svg.replace("<svg ", '<svg xml:space="preserve" ', 1)
    # rich loads its font from a server: a picture in a README must not.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return re.sub(r"font-family: [^;]*;", f"font-family: {FONTS};", svg)


def main() -> None:
    parser = argparse.ArgumentParser(description="Record docs/terminal.svg.")
    parser.add_argument("commands", nargs="*", default=COMMANDS, metavar="COMMAND", help="verb and options")
    parser.add_argument(
        "--program", default=shlex.quote(str(ROOT / "claude-sandbox")), help="a shell's words"
    )
    parser.add_argument("-C", "--directory", type=Path, default=Path.cwd(), help="the project")
    parser.add_argument("--replace", action="append", default=[], metavar="FROM=TO", help="in what is shown")
    parser.add_argument("--width", type=int, default=100, help="of the terminal, in characters")
    parser.add_argument("--title", default="claude-sandbox")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "terminal.svg")
    parser.add_argument("--ask", metavar="TEXT", help="take Claude's screen after this request instead")
    parser.add_argument("--until", default=READY, metavar="TEXT", help="on Claude's screen when it is taken")
    chosen = parser.parse_args()
    recorded: list[tuple[str | None, list[str]]] = []
    for command in [None] if chosen.ask else chosen.commands:
        if command is None:
            lines = ask(chosen.program, chosen.ask, chosen.until, chosen.directory, chosen.width)
        else:
            lines = run(chosen.program, command, chosen.directory, chosen.width)
        for change in chosen.replace:
            old, _, new = change.partition("=")
            lines = [line.replace(old, new) for line in lines]
        recorded.append((command, lines))
    chosen.output.write_text(picture(recorded, chosen.width, chosen.title), encoding="utf-8")


if __name__ == "__main__":
    main()

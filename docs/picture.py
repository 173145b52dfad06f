#!/usr/bin/env python3
"""Records docs/terminal.svg: real commands, run one after the other in a real terminal, as a picture.

    python docs/picture.py -C ~/projects/app status list 'shell -- uname -sr'

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
TIMEOUT = 900.0  # seconds for one command
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def run(program: str, command: str, directory: Path, width: int) -> list[str]:
    """What stands on the terminal after `program command`, line by line, with its colour codes."""
    with tempfile.TemporaryDirectory() as place:
        tmux = ("tmux", "-S", f"{place}/socket", "-f", "/dev/null")
        # The program must not think that it runs in the user's tmux.
        line = f"env -u TMUX -u TMUX_PANE {program} {command}; {shlex.join([*tmux, 'wait-for', '-S', 'end'])}"
        size = ("-x", str(width), "-y", str(LINES))
        start = (*tmux, "new-session", "-d", *size, "-c", str(directory), f"{line}; exec sleep 3600")
        subprocess.run(start, check=True)
        try:
            subprocess.run((*tmux, "wait-for", "end"), check=True, timeout=TIMEOUT)
            screen = subprocess.run((*tmux, "capture-pane", "-e", "-p"), check=True, capture_output=True)
        finally:
            subprocess.run((*tmux, "kill-server"), check=False)
    return screen.stdout.decode().rstrip().splitlines()


def picture(recorded: Sequence[tuple[str, list[str]]], width: int, title: str) -> str:
    """The SVG of commands and their output."""
    with open("/dev/null", "w") as nowhere:
        console = Console(
            record=True, width=width, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        for number, (command, lines) in enumerate(recorded):
            if number:
                console.print()
            console.print(Text.assemble(("$ ", "bold green"), (f"claude-sandbox {command}".rstrip(), "bold")))
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
    chosen = parser.parse_args()
    recorded = []
    for command in chosen.commands:
        lines = run(chosen.program, command, chosen.directory, chosen.width)
        for change in chosen.replace:
            old, _, new = change.partition("=")
            lines = [line.replace(old, new) for line in lines]
        recorded.append((command, lines))
    chosen.output.write_text(picture(recorded, chosen.width, chosen.title), encoding="utf-8")


if __name__ == "__main__":
    main()

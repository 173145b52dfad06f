"""The verbs by which a user attends to their sandboxes: watch, next, reply, notify."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from _claude_sandbox.cli import render
from _claude_sandbox.cli import watch as cli_watch
from _claude_sandbox.cli.invocation import Invocation
from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.errors import ClaudeSandboxError, RefusedError, SandboxNotFoundError, UsageError
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.hooks.attention import NEEDS_INPUT, Session
from _claude_sandbox.hooks.event import HOST_REPLIED
from _claude_sandbox.lima.limactl import RUNNING
from _claude_sandbox.sandbox import lifecycle as sandbox_lifecycle
from _claude_sandbox.sandbox import overview as sandbox_overview
from _claude_sandbox.sandbox.overview import Row
from _claude_sandbox.system import paths, terminal
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.system.run import Runner
from _claude_sandbox.terminals import focus as terminals_focus
from _claude_sandbox.terminals import records as terminals_records
from _claude_sandbox.terminals import reply as terminals_reply
from _claude_sandbox.terminals import screen as terminals_screen
from _claude_sandbox.terminals.tmux import Tmux

_INTERVAL = 3.0  # seconds between two looks at the VMs themselves; their sessions are looked at at every tick


# -- watch ---------------------------------------------------------------------------------------


def watch(call: Invocation) -> int:
    """The live view; without a terminal, or with --json, the same once."""
    usage = cli_watch.Usage(paths.lima_home())
    if call.options.json:
        render.print_json([_row_data(row) for row in sandbox_overview.rows(call.ctx)])
        return 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        found = sandbox_overview.rows(call.ctx)
        cli_watch.lines(found, usage, time.time_ns())  # sets the mark for the CPU's use
        time.sleep(0.1)
        print(cli_watch.once(found, usage))
        call.progress.note("There is no terminal to draw on: this is how it is now.")
        return 0
    actions = cli_watch.KeyActions(
        attach=lambda row: _report(lambda: attach(call, row)),
        stop=lambda row: _report(lambda: _stop(call, row)),
        answer=lambda row: _report(lambda: _answer(call, row)),
    )
    return cli_watch.LiveView(_RowSource(call), usage, actions).run()


class _RowSource:
    """Rows for a view that asks several times a second."""

    def __init__(self, call: Invocation) -> None:
        self._call = call
        self._listed: list[Row] = []
        self._looked, self._stamp = 0.0, 0
        self._rows: list[Row] = []

    def __call__(self) -> list[Row]:
        try:
            stamp = sandbox_overview.state_file().stat().st_mtime_ns
        except OSError:
            stamp = 0
        due = time.monotonic() - self._looked > _INTERVAL
        if due:
            self._listed, self._looked = sandbox_overview.rows(self._call.ctx), time.monotonic()
        if due or stamp != self._stamp:
            listed = dict.fromkeys((row.sandbox, row.project, row.status) for row in self._listed)
            self._rows, self._stamp = sandbox_overview.arrange(listed, hooks_client.sessions()), stamp
        return self._rows


def _report(do: Callable[[], str]) -> str:
    """What a key did, or why not, in a line."""
    try:
        return do()
    except ClaudeSandboxError as error:
        return " ".join(part for part in (error.brief, error.resolution) if part)


def _stop(call: Invocation, row: Row) -> str:
    if row.status != RUNNING:
        return f"{row.sandbox} does not run."
    if not terminal.ask(f"Stop {row.sandbox}?"):
        return "Nothing was stopped."
    done = sandbox_lifecycle.stop(call.ctx, row.project, force=call.options.force)
    return f"{done.name} is stopped."


def _answer(call: Invocation, row: Row) -> str:
    session = _session_of(row)
    print(shown(call.runner, session))
    sys.stdout.write("Answer (empty: none): ")
    sys.stdout.flush()
    text = sys.stdin.readline().strip()
    return _sent(send(call.runner, session, text)) if text else "Nothing was sent."


# -- next ----------------------------------------------------------------------------------------


def next_waiting(call: Invocation) -> int:
    """Attach to the session that has waited longest; those that `next` has shown already come last."""
    found = sorted(sandbox_overview.waiting(call.ctx), key=_was_shown)
    if call.options.json:
        render.print_json(_row_data(found[0]) if found else None)
        return 0 if found else 1
    if not found:
        call.progress.note("Nothing waits for you.")
        return 1
    row = found[0]
    session = _session_of(row)
    call.progress.note(
        f"{row.project}: {cli_watch.STATE_WORDS[row.state]}: {render.printable(session.message)}"
    )
    if call.options.dry_run:
        return 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise RefusedError("There is no terminal to attach.", resolution=f"claude-sandbox -d {row.project}")
    _remember(session)
    if said := attach(call, row):
        call.progress.note(said)
    return 0


def _was_shown(row: Row) -> bool:
    session = row.session
    return bool(session and (read_object(_shown_file()) or {}).get("/".join(session.key)) == session.seq)


def _remember(session: Session) -> None:
    known = {"/".join(each.key): each.seq for each in hooks_client.sessions()}
    kept = {key: seq for key, seq in (read_object(_shown_file()) or {}).items() if known.get(key) == seq}
    write_json(_shown_file(), {**kept, "/".join(session.key): session.seq})


def _shown_file() -> Path:
    return terminals_records.directory().parent / "shown.json"


def attach(call: Invocation, row: Row) -> str:
    """This terminal onto the row's Claude; returns what is to be said afterwards.

    Raises SandboxNotFoundError when none of our terminals runs it, and RefusedError when it runs in one without tmux.
    """
    record = sandbox_overview.pane_record(_session_of(row))
    if record is None:
        raise SandboxNotFoundError(
            f"No terminal of this host runs that Claude in {row.sandbox}, as far as we know.",
            resolution=f"claude-sandbox -d {row.project}",
        )
    found = terminals_records.server(record, call.runner)
    if found is None:
        raise RefusedError(f"It runs without tmux on {record.tty or 'another terminal'}: go there.")
    tmux, pane = found
    if terminals_focus.inside_same_server(tmux):
        here = Tmux.own_client(call.runner)
        tmux.show(pane, here or next(iter(tmux.clients()), None))
        return ""
    call.runner.foreground(terminals_focus.attach_command(tmux, pane))
    return ""


# -- reply ---------------------------------------------------------------------------------------


def reply(call: Invocation) -> int:
    """Type an answer into Claude's pane; without TEXT show what it waits for."""
    if call.options.text is not None and call.rest:
        raise UsageError(
            "TEXT is given before `--` and behind it.", resolution="Give it once, best behind `--`."
        )
    words = [call.options.text] if call.options.text is not None else list(call.rest)
    text = " ".join(words)
    if not words and call.options.seq is not None:
        raise UsageError("--seq goes with an answer.", resolution="claude-sandbox reply NAME TEXT --seq N")
    session = _select_session(sandbox_overview.named(call.ctx, call.options.name), call.options.session)
    if not words:
        if call.options.json:
            render.print_json({**session.to_json(), "dialog": _open_dialog(call.runner, session)})
        else:
            print(shown(call.runner, session))
        return 0
    if text == "-":
        text = sys.stdin.read(terminals_reply.LONGEST)
    wanted = call.options.seq
    if wanted is not None and wanted != str(session.seq):
        raise RefusedError(
            f"This answers what Claude in {session.sandbox} no longer asks.",
            details=f"It is {session.state} now: {session.message}",
        )
    if call.options.dry_run:
        call.report(f"(type into {session.sandbox}: {render.printable(text)})")
        return call.show(None, "")
    sent = send(call.runner, session, text)
    return call.show(sent, _sent(sent))


def send(runner: Runner, session: Session, text: str) -> terminals_reply.Replied:
    sent = terminals_reply.reply(session, text, runner, now=lambda: sandbox_overview.current(session.key))
    if (
        sent.kind == "choice"
    ):  # no event of Claude's own tells of every answer: the state must not wait for one
        with contextlib.suppress(OSError, ClaudeSandboxError):  # the server went: it will see for itself
            event = {"name": HOST_REPLIED, "sandbox": session.sandbox, "session_id": session.session_id}
            daemon_client.ask("POST", "/inject", {**event, "answers": session.seq}, timeout=2)
    return sent


def _sent(sent: terminals_reply.Replied) -> str:
    return f"{sent.sandbox}: chosen: {sent.text}" if sent.kind == "choice" else f"{sent.sandbox}: sent."


def _select_session(rows: Sequence[Row], wanted: str | None) -> Session:
    """The one session that is meant: by its id, else the one that waits, else the only one."""
    live = [row.session for row in rows if row.session is not None]
    if wanted is not None:
        live = [session for session in live if session.session_id.startswith(wanted)]
    waits = [session for session in live if session.state == NEEDS_INPUT] or [
        session for session in live if session.state in sandbox_overview.NEXT
    ]
    one = waits or live
    if not one:
        raise SandboxNotFoundError(
            f"No Claude that we know of runs in {rows[0].sandbox}.",
            resolution=f"claude-sandbox -d {rows[0].project}",
        )
    if len(one) > 1:
        lines = "\n".join(f"{s.session_id}  {s.state}: {s.message}" for s in one)
        raise UsageError("Several sessions wait there.", details=lines, resolution="Say which: --session ID.")
    return one[0]


def shown(runner: Runner, session: Session) -> str:
    """What a session waits for, and what may be answered."""
    lines = [
        f"{session.sandbox}: {cli_watch.STATE_WORDS.get(session.state, session.state)}",
        render.printable(session.message),
    ]
    open = _open_dialog(runner, session)
    if open is not None:
        lines += [open.question, *(f"  {choice.key}. {choice.label}" for choice in open.choices)]
    elif session.state == NEEDS_INPUT:
        lines += [f"  {render.printable(choice)}" for choice in session.choices]
    return "\n".join(line for line in lines if line)


def _open_dialog(runner: Runner, session: Session) -> terminals_screen.Dialog | None:
    record = sandbox_overview.pane_record(session)
    found = terminals_records.server(record, runner) if record else None
    return terminals_screen.dialog(found[0].screen(found[1].id)) if found else None


def _session_of(row: Row) -> Session:
    if row.session is None:
        raise SandboxNotFoundError(
            f"No Claude runs in {row.sandbox}.", resolution=f"claude-sandbox -d {row.project}"
        )
    return row.session


def _row_data(row: Row) -> dict[str, object]:
    return {
        "sandbox": row.sandbox, "project": row.project, "status": row.status,
        "session": row.session.to_json() if row.session else None,
    }  # fmt: skip


# -- notify --------------------------------------------------------------------------------------


def notify(call: Invocation) -> int:
    """`notify test`: a notification by every way, and which of them worked (0: at least one).

    The hooks server's own ways, where one runs: it may lack what this terminal knows of the desktop.
    """
    if call.options.dry_run:
        call.report("(show a test notification by every way)")
        return call.show({"ways": [], "log": []}, "")
    log: list[str] = []
    if daemon_client.running():
        ways = [str(line) for line in daemon_client.ask("POST", "/notify-test", timeout=60).get("ways", [])]
    else:
        import asyncio

        from _claude_sandbox.notify.notifier import Notifier

        async def test() -> list[str]:
            return await Notifier(log=log.append).test()

        ways = asyncio.run(test())
    if call.options.json:
        render.print_json({"ways": ways, "log": log})
    else:
        print("\n".join([*map(render.printable, ways), *map(render.printable, log)]))
    return 0 if any(line.endswith(("shown", "it ran")) for line in ways) else 1


def open_terminal(call: Invocation) -> int:
    """What a click on macOS runs: bring the user to a session."""
    record = terminals_records.read(call.options.uuid)
    if record is None or not terminals_records.alive(record):
        raise SandboxNotFoundError("That Claude session has ended.")
    brought = terminals_focus.bring(record, call.runner)
    if not brought.shown:
        raise ClaudeSandboxError("Nothing shows that session now.", resolution=brought.hint)
    return 0

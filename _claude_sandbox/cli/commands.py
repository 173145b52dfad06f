"""One short function a verb: options in, the public verbs called, their return values rendered."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from _claude_sandbox.cli import parser, render
from _claude_sandbox.cli.verbs import base_vm as verbs_base_vm
from _claude_sandbox.config import approvals as config_approvals
from _claude_sandbox.config import parsers as config_parsers
from _claude_sandbox.config import table as config_table
from _claude_sandbox.errors import (
    Cancelled,
    ClaudeSandboxError,
    ConfigError,
    HostSetupError,
    UsageError,
    together,
)
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.lima import context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.sandbox import lifecycle as sandbox_lifecycle
from _claude_sandbox.system import paths, terminal
from _claude_sandbox.system.progress import Progress
from _claude_sandbox.system.run import DryRunner, LocalRunner, Runner
from _claude_sandbox.vm import lookup as vm_lookup
from _claude_sandbox.vm import start as vm_start
from _claude_sandbox.voice import grants as voice_grants


@dataclass
class Call:
    """One call of the program: what was typed, and what the handlers need, made when first used."""

    verb: parser.Verb
    chosen: argparse.Namespace
    rest: Sequence[str]
    began: int = field(default_factory=time.time_ns)

    @cached_property
    def progress(self) -> Progress:
        if self.chosen.json or self.chosen.quiet or not sys.stderr.isatty():
            return terminal.LineProgress(quiet=self.chosen.json or self.chosen.quiet)
        return terminal.TerminalProgress()

    @cached_property
    def runner(self) -> Runner:
        return DryRunner(LocalRunner(), self.tell) if self.chosen.dry_run else LocalRunner()

    def tell(self, text: str) -> None:
        """What must be seen whatever was typed: on stdout; on stderr with --json, which has stdout for itself."""
        print(text, file=sys.stderr if self.chosen.json else sys.stdout, flush=True)

    def show(self, value: Any, sentence: str) -> int:
        """What was done: data with --json, else a sentence (not with -q); 0."""
        if self.chosen.json:
            render.print_json(value)
        elif not self.chosen.quiet and not self.chosen.dry_run:
            print(sentence)
        return 0

    @property
    def flags(self) -> dict[str, Any]:
        """The options of the settings table, by key, as they were typed."""
        return {row.key: getattr(self.chosen, row.key, None) for row in config_table.SETTINGS if row.flags}

    @property
    def _flags(self) -> dict[str, Any]:
        return {**self.flags, "dir": self.chosen.dir}

    @cached_property
    def config(self) -> config_table.Config:
        try:
            loaded = config_table.load(self._flags)
        except config_approvals.ApprovalNeeded as needed:
            if not self._approved_now(needed):
                raise
            loaded = config_table.load(self._flags)
        return loaded

    def config_at_hand(self, *, ask: bool = False) -> config_table.Config:
        """For verbs that need nothing of the project's file, which a guest can write: when it is broken or not
        approved (`ask`: on a terminal the user may approve it now), all but that file, with a warning."""
        try:
            if ask:
                return self.config
        except ConfigError:
            pass
        loaded, trouble = config_table.load_leniently(self._flags)
        if trouble is not None:
            self.progress.warn(f"The project's file was left out: {trouble.brief}")
        return loaded

    def _approved_now(self, needed: config_approvals.ApprovalNeeded) -> bool:
        """On a terminal the user is asked; `--yes` does not stand for having looked."""
        if terminal.ask(f"{needed.brief}\n{needed.details}\nAllow it?"):
            config_approvals.approve(config_table.project_directory(self.chosen.dir), needed.digest)
            return True
        return False

    def confirm(self, question: str) -> bool | None:
        """True with --yes or --force; None when there is nobody to ask."""
        if self.chosen.yes or self.chosen.force:
            return True
        return terminal.ask(question)

    def require(self, question: str) -> None:
        """Ask before a loss; without a terminal there is no question. Raises Cancelled."""
        if not self.chosen.dry_run and self.confirm(question) is False:
            raise Cancelled("Nothing was changed.")

    @cached_property
    def ctx(self) -> context.Context:
        """Raises HostSetupError when Lima is missing or too old."""
        from _claude_sandbox.host import inventory, run_as
        from _claude_sandbox.lima import limactl

        binary = inventory.find_limactl(LocalRunner())
        driver = limactl.Lima(
            self.runner,
            paths.lima_home(),
            executable=binary.path,
            prefix=run_as.limactl_prefix(),
            env=inventory.limactl_env(),
        )
        return context.Context(
            driver,
            run_as.guest_user(),
            self.progress,
            self.confirm,
            self._start_env,
            macos=sys.platform == "darwin",
            ask=terminal.ask,
            dry=self.chosen.dry_run,
        )

    def _start_env(self) -> dict[str, str | None]:
        from _claude_sandbox.host import accelerator
        from _claude_sandbox.lima import ssh_retry

        found = accelerator.detect(LocalRunner())
        if found.note:
            self.progress.note(found.note)
        return {**found.start_env, **ssh_retry.environment(paths.runtime_dir())}

    @cached_property
    def ready(self) -> context.Context:
        """The context for verbs that start VMs: what the host lacks is installed first."""
        if not self._running():
            from _claude_sandbox.cli.verbs import host as verbs_host

            self._check_places()
            ports = config_parsers.parse_ports(self.flags["ports"]) if self.flags["ports"] else ()
            verbs_host.ensure(self, lambda: vm_start.check_ports(ports))
        return self.ctx

    def _check_places(self) -> None:
        """The directory and the file that were typed are there. Raises UsageError."""
        settings, template = self.flags["settings"], self.flags["template"]
        if settings and not Path(settings).expanduser().is_dir():
            raise UsageError(f"Settings directory not found: {settings}")
        if template and ":" not in template and not Path(template).expanduser().is_file():
            raise UsageError(f"Template not found: {template}")

    def _running(self) -> bool:
        """Whether this project's sandbox runs: then the host lacks nothing."""
        try:
            project = config_table.project_directory(self.chosen.dir)
            instance = vm_lookup.by_name(self.ctx, project)
        except HostSetupError:
            return False
        return instance is not None and instance.status == "Running"


def run(verb: parser.Verb, chosen: argparse.Namespace, rest: Sequence[str]) -> int:
    """Carry a verb out; returns the exit code."""
    call = Call(verb, chosen, rest)
    if os.geteuid() == 0:
        from _claude_sandbox.host import run_as

        run_as.leave_other_homes()
    _check_words(call)
    if verb.name not in ("help", "completion", "_session"):
        _become_user(call)
    return _HANDLERS[verb.name](call)


def _check_words(call: Call) -> None:
    """What is typed wrongly is reported before anything of the host is looked at, or installed (spec 1.12)."""
    config_table.check_flags(call.flags)
    if call.verb.name == "rebuild-tools-vm":
        verbs_base_vm.check(call)
    if call.verb.name == "login":
        from _claude_sandbox.cli.verbs import settings as verbs_settings

        verbs_settings.check_login(call)
    if call.chosen.dir is not None:
        config_table.project_directory(call.chosen.dir)


def _become_user(call: Call) -> None:
    """As root on Linux: the user behind sudo, or the project's owner, if there is one (facts/checked.md)."""
    if sys.platform == "linux" and os.geteuid() == 0:
        from _claude_sandbox.cli.verbs import host as verbs_host
        from _claude_sandbox.host import run_as

        directory = config_table.project_directory(call.chosen.dir)
        verbs_host.packages_as_root(call, directory)
        if note := run_as.become_user(directory):
            call.progress.note(note)


# -- running -------------------------------------------------------------------------------------


def _ensure(call: Call) -> tuple[Instance, bool]:
    config = call.config  # before the host's setup: a wrong value installs nothing
    return sandbox_lifecycle.ensure(call.ready, config, verbs_base_vm.builder(call))


def _claude(call: Call) -> int:
    from _claude_sandbox.session import launch as session_launch

    instance, created = _ensure(call)
    if call.chosen.dry_run:
        return 0
    new = call.chosen.new or created
    return session_launch.run_claude(call.ctx, call.config, instance, call.rest, new=new, began=call.began)


def _shell(call: Call) -> int:
    from _claude_sandbox.session import launch as session_launch

    instance, _ = _ensure(call)
    if call.chosen.dry_run:
        return 0
    return session_launch.run_shell(call.ctx, call.config, instance, call.rest, began=call.began)


def _session(call: Call) -> int:
    """Inside a tmux session of ours: run, and leave the exit code where whoever is attached looks for it."""
    from _claude_sandbox.session.attach import Session, code_path, run_session
    from _claude_sandbox.system.files import write_atomic

    file = Path(call.chosen.file)
    session = Session.load(file)
    code = 1
    try:
        code = run_session(call.ctx, session)
    except ClaudeSandboxError as error:
        code = error.exit_code
        raise
    finally:
        write_atomic(code_path(file), str(code).encode())
    return code


# -- life of a sandbox ---------------------------------------------------------------------------


def _create(call: Call) -> int:
    config = call.config
    made = sandbox_lifecycle.create_only(call.ready, config, verbs_base_vm.builder(call))
    return call.show(made, f"{made.name} is ready. `claude-sandbox` attaches Claude to it.")


def _start(call: Call) -> int:
    instance, _ = _ensure(call)
    return call.show(sandbox_lifecycle.Sandbox.of(instance), f"{instance.name} is running.")


def _project(call: Call) -> Any:
    return config_table.project_directory(call.chosen.dir)


def _stop(call: Call) -> int:
    done = sandbox_lifecycle.stop(call.ctx, _project(call), force=call.chosen.force)
    missing = done.status == sandbox_lifecycle.MISSING
    return call.show(done, "This project has no sandbox." if missing else f"{done.name} is stopped.")


def _restart(call: Call) -> int:
    config = call.config_at_hand(ask=True)  # before the host's setup: a wrong value installs nothing
    done = sandbox_lifecycle.restart(call.ready, config, force=call.chosen.force)
    return call.show(done, f"{done.name} is running.")


def _stop_all(call: Call) -> int:
    outcome = sandbox_lifecycle.Outcome()
    with outcome.going_on():
        outcome = sandbox_lifecycle.stop_all(call.ctx, force=call.chosen.force)
    if not call.chosen.dry_run:
        from _claude_sandbox.cli import servers

        with outcome.going_on():
            servers.stop_all()
    return _outcome(call, outcome, f"Stopped {_count(len(outcome.done))}.")


def _outcome(call: Call, outcome: sandbox_lifecycle.Outcome, sentence: str) -> int:
    """What was done of a list; then what failed of it, as one error."""
    if not outcome.failed or (outcome.done and not call.chosen.json):
        call.show(outcome.done, sentence)
    if outcome.failed:
        raise together(f"{len(outcome.failed)} steps failed.", outcome.failed)
    return 0


def _count(number: int) -> str:
    return f"{number} sandbox" + ("" if number == 1 else "es")


def _delete(call: Call) -> int:
    project = _project(call)
    found = vm_lookup.find(call.ctx, project)
    if found is not None:
        busy = _busy_words([found.name])
        call.require(
            f"{busy}Delete {found.name} with Claude's conversations in it? The project's files stay."
        )
    done = sandbox_lifecycle.delete(call.ctx, project)
    missing = done.status == sandbox_lifecycle.MISSING
    return call.show(done, "This project has no sandbox." if missing else f"{done.name} is deleted.")


def _busy_words(names: Sequence[str]) -> str:
    """`Claude is working in NAME. `, as far as the hooks server knows; for a question about a loss."""
    busy = [name for name in names if hooks_client.busy(name)]
    return f"Claude is working in {' and '.join(busy)}. " if busy else ""


def _prune(call: Call) -> int:
    if call.chosen.cache:
        return _prune_cache(call)
    if call.chosen.forget_home:
        raise UsageError("--forget-home goes with --cache.")
    doomed = sandbox_lifecycle.prunable(call.ctx, call.chosen.prefix, orphans=call.chosen.orphans)
    if doomed:
        names = "\n".join(render.sandbox_line(s) for s in doomed)
        if not call.chosen.json:
            print(f"{_count(len(doomed))} to delete:\n{names}")
        busy = _busy_words([each.name for each in doomed])
        call.require(f"{busy}Delete {'it' if len(doomed) == 1 else 'them'} with Claude's conversations?")
    nothing = "There is nothing to delete."
    if not doomed and call.chosen.dry_run and not call.chosen.json:
        print(nothing)
    outcome = sandbox_lifecycle.prune(call.ctx, doomed)
    return _outcome(call, outcome, f"Deleted {_count(len(outcome.done))}." if doomed else nothing)


def _prune_cache(call: Call) -> int:
    from _claude_sandbox.cli.verbs import disks as verbs_disks

    done = verbs_disks.prune_cache(call)
    return call.show(done, verbs_disks.freed(done))


def _update(call: Call) -> int:
    from _claude_sandbox.vm import first_boot

    config = call.config
    instance, _ = sandbox_lifecycle.ensure(call.ready, config)
    version = first_boot.update_claude(call.ctx, instance)
    return call.show({"name": instance.name, "claude": version}, f"Claude Code in {instance.name}: {version}")


# -- questions -----------------------------------------------------------------------------------


def _status(call: Call) -> int:
    chosen = call.config_at_hand()
    from _claude_sandbox.vm import create as vm_create

    vms = sandbox_lifecycle.sandboxes(call.ctx)
    value = {
        "base_vm": sandbox_lifecycle.base_name(call.ctx, chosen),
        "template": chosen.template or vm_create.DEFAULT_TEMPLATE,
        "hooks_server": "Running" if hooks_client.running() else "Not running",
        "audio_server": voice_grants.status(),
        "vms": vms,
        "sessions": hooks_client.session_dicts({each.name: each.status for each in vms}),
    }
    if call.chosen.json:
        render.print_json(value)
    else:
        print(render.status(value))
    return 0


def _list(call: Call) -> int:
    found = sandbox_lifecycle.sandboxes(call.ctx)
    sessions = hooks_client.session_dicts({each.name: each.status for each in found})
    if call.chosen.json:
        of = {each.name: [s for s in sessions if s["sandbox"] == each.name] for each in found}
        render.print_json([{**render.data(each), "sessions": of[each.name]} for each in found])
    else:
        print(render.table(found, sessions))
    return 0


def _info(call: Call) -> int:
    value = sandbox_lifecycle.info(call.ctx, _project(call))
    if call.chosen.json:
        render.print_json(value)
    else:
        print(render.info(value))
    return 0


def _help(call: Call) -> int:
    verb = parser.VERBS.get(call.chosen.verb)
    if verb is None:
        raise UsageError(f"Unknown command: {call.chosen.verb}", resolution="See `claude-sandbox --help`.")
    print(parser.help_text(verb), end="")
    return 0


def _approve(call: Call) -> int:
    try:
        config_table.load({"dir": call.chosen.dir})
    except config_approvals.ApprovalNeeded as needed:
        call.tell(needed.brief)
        value = {"project": _project(call), "wants": needed.wants, "approved": not call.chosen.dry_run}
        if not call.chosen.dry_run:
            if not call.confirm("Allow it?"):
                raise Cancelled("Nothing was approved.", resolution="Without a terminal, say -y.") from None
            config_approvals.approve(_project(call), needed.digest)
        return call.show(value, "Approved, until that file changes.")
    nothing = {"project": _project(call), "wants": [], "approved": True}
    if call.chosen.dry_run and not call.chosen.json:
        call.tell("Nothing in this project needs an approval.")
    return call.show(nothing, "Nothing in this project needs an approval.")


def _completion(call: Call) -> int:
    from _claude_sandbox.cli import completion

    print(completion.script(call.chosen.shell), end="")
    return 0


def _later(module: str, function: str) -> Callable[[Call], int]:
    """A handler of cli/verbs/, imported when it is called."""

    def handler(call: Call) -> int:
        import importlib

        result = getattr(importlib.import_module(f"_claude_sandbox.cli.verbs.{module}"), function)(call)
        assert isinstance(result, int)
        return result

    return handler


_HANDLERS: dict[str, Callable[[Call], int]] = {
    parser.CLAUDE: _claude,
    "shell": _shell,
    "create": _create,
    "start": _start,
    "stop": _stop,
    "restart": _restart,
    "stop-all": _stop_all,
    "status": _status,
    "list": _list,
    "info": _info,
    "watch": _later("attention", "watch_verb"),
    "next": _later("attention", "next_verb"),
    "reply": _later("attention", "reply_verb"),
    "notify": _later("attention", "notify_verb"),
    "delete": _delete,
    "prune": _prune,
    "update": _update,
    "events": _later("events", "events"),
    "restart-hooks": _later("events", "restart_hooks"),
    "rebuild-tools-vm": verbs_base_vm.rebuild,
    "setup": _later("host", "setup"),
    "doctor": _later("host", "doctor"),
    "settings": _later("settings", "settings"),
    "login": _later("settings", "login_verb"),
    "approve": _approve,
    "completion": _completion,
    "uninstall": _later("uninstall", "uninstall"),
    "help": _help,
    "_session": _session,
    "_open": _later("attention", "open_verb"),
}

"""One call of the program: what was typed, and what the verbs need for it, made when it is first used."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _claude_sandbox.cli import render
from _claude_sandbox.cli.verb_table import Verb
from _claude_sandbox.config import approvals as config_approvals
from _claude_sandbox.config import load as config_load
from _claude_sandbox.config import table as config_table
from _claude_sandbox.errors import Cancelled, ConfigError

if TYPE_CHECKING:
    from _claude_sandbox.lima.context import Context
    from _claude_sandbox.system.progress import Progress
    from _claude_sandbox.system.run import Runner


@dataclass
class Invocation:
    """`options`: as parsed, by long name, those of settings by key; `rest`: what followed `--`.

    `began`: when it started, in ns since 1970. `plan`: the steps that a dry run has described.
    """

    verb: Verb
    options: argparse.Namespace
    rest: Sequence[str]
    began: int = field(default_factory=time.time_ns)
    plan: list[str] = field(default_factory=list)

    # -- output ----------------------------------------------------------------------------------

    @cached_property
    def progress(self) -> Progress:
        from _claude_sandbox.system import terminal

        if self.options.json or self.options.quiet or not sys.stderr.isatty():
            return terminal.LineProgress(quiet=self.options.json or self.options.quiet)
        return terminal.TerminalProgress()

    def report(self, text: str) -> None:
        """Print what must be seen, also with -q: on stdout; on stderr with --json, whose data stdout is for."""
        print(text, file=sys.stderr if self.options.json else sys.stdout, flush=True)

    def describe(self, step: str) -> None:
        """Print a step of the plan of a dry run, and keep it."""
        self.plan.append(step)
        self.report(step)

    def show(self, value: Any, sentence: str) -> int:
        """Print what was done: data with --json, else a sentence (not with -q or --dry-run). Returns 0."""
        if self.options.json:
            render.print_json(value)
        elif not self.options.quiet and not self.options.dry_run:
            print(sentence)
        return 0

    def answer(self, value: Any, text: str) -> int:
        """Print what was asked for, also with -q: data with --json, else the text. Returns 0."""
        if self.options.json:
            render.print_json(value)
        else:
            print(text)
        return 0

    # -- questions -------------------------------------------------------------------------------

    def confirm(self, question: str) -> bool | None:
        """True with --yes or --force; None when there is nobody to ask."""
        if self.options.yes or self.options.force:
            return True
        from _claude_sandbox.system import terminal

        return terminal.ask(question)

    def confirm_loss(self, question: str) -> None:
        """Ask before a loss; without a terminal there is no question. Raises Cancelled."""
        if not self.options.dry_run and self.confirm(question) is False:
            raise Cancelled("Nothing was changed.")

    def require_yes(self, question: str, otherwise: str) -> None:
        """Ask, and raise Cancelled (`otherwise`) unless the answer is yes; nobody to ask counts as no."""
        agreed = self.confirm(question)
        if not agreed:
            hint = "Without a terminal, say -y." if agreed is None else None
            raise Cancelled(otherwise, resolution=hint)

    # -- options and files -----------------------------------------------------------------------

    @property
    def typed_settings(self) -> dict[str, Any]:
        """The options of the settings table, by key, as they were typed."""
        return {row.key: getattr(self.options, row.key, None) for row in config_table.SETTINGS if row.flags}

    @property
    def _typed(self) -> dict[str, Any]:
        return {**self.typed_settings, "dir": self.options.dir}

    @cached_property
    def project(self) -> Path:
        """The project's resolved directory, for this user: who becomes another one forgets it. Raises ClaudeSandboxError."""
        return config_load.project_directory(self.options.dir)

    @cached_property
    def config(self) -> config_table.Config:
        """Every setting's value. Raises UsageError, ConfigError; ApprovalNeeded, unless the user approves now."""
        try:
            return config_load.load(self._typed, project=self.project)
        except config_approvals.ApprovalNeeded as needed:
            if not self._approved_now(needed):
                raise
        return config_load.load(self._typed, project=self.project)

    def lenient_config(self, *, ask: bool = False) -> config_table.Config:
        """For verbs that need nothing of the project's file, which a guest can write: when it is broken or not
        approved (`ask`: on a terminal the user may approve it now), all but that file, with a warning."""
        try:
            if ask:
                return self.config
        except ConfigError:
            pass
        loaded, trouble = config_load.load_leniently(self._typed, project=self.project)
        if trouble is not None:
            self.progress.warn(f"The project's file was left out: {trouble.brief}")
        return loaded

    def _approved_now(self, needed: config_approvals.ApprovalNeeded) -> bool:
        """On a terminal the user is asked; `--yes` does not prove that they looked."""
        from _claude_sandbox.system import terminal

        if terminal.ask(f"{needed.brief}\n{needed.details}\nAllow it?"):
            config_approvals.approve(self.project, needed.digest)
            return True
        return False

    # -- the host --------------------------------------------------------------------------------

    @cached_property
    def runner(self) -> Runner:
        from _claude_sandbox.system.run import DryRunner, LocalRunner

        return DryRunner(LocalRunner(), self.describe) if self.options.dry_run else LocalRunner()

    @cached_property
    def ctx(self) -> Context:
        """Raises HostSetupError when Lima is missing or too old (`verbs.host.context_after_setup` installs it)."""
        from _claude_sandbox.host import inventory, run_as
        from _claude_sandbox.lima.context import Context
        from _claude_sandbox.lima.limactl import Lima
        from _claude_sandbox.system import paths, terminal
        from _claude_sandbox.system.effects import DryEffects, Effects
        from _claude_sandbox.system.run import LocalRunner

        driver = Lima(
            self.runner,
            paths.lima_home(),
            executable=inventory.find_limactl(LocalRunner()).path,
            prefix=run_as.limactl_prefix(),
            env=inventory.limactl_env(),
        )
        return Context(
            driver,
            run_as.guest_user(),
            self.progress,
            self.confirm,
            self._start_env,
            macos=sys.platform == "darwin",
            ask=terminal.ask,
            effects=DryEffects(self.describe) if self.options.dry_run else Effects(),
        )

    def _start_env(self) -> dict[str, str | None]:
        from _claude_sandbox.host import accelerator
        from _claude_sandbox.lima import ssh_retry
        from _claude_sandbox.system import paths
        from _claude_sandbox.system.run import LocalRunner

        found = accelerator.detect(LocalRunner())
        if found.note:
            self.progress.note(found.note)
        return {**found.start_env, **ssh_retry.environment(paths.runtime_dir())}

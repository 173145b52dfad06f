"""The verbs, one row each: what is typed, what its help says and which function runs it. Standard library only.

Parsing, help, the completion scripts and the dispatch read these rows; a new verb is one row and its function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from _claude_sandbox.config.table import SETTINGS, Setting

ME = "claude-sandbox"
CLAUDE = ""  # the bare command


@dataclass(frozen=True)
class Argument:
    """An option (its names start with `-`) or a positional argument (one name).

    `metavar`: how help calls its value; an option without one is a switch. `nargs`, `default`: as in argparse.
    `repeat`: each use adds a value. `key`: its attribute among the parsed options, if it is not the long name.
    `completes`: what the shells offer as its value, a key of `completion.SOURCES`; by default its `choices`.
    """

    names: tuple[str, ...]
    help: str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    nargs: str | None = None
    default: Any = None
    repeat: bool = False
    key: str = ""
    completes: str = ""

    @property
    def is_option(self) -> bool:
        return self.names[0].startswith("-")


def _switch(*names: str, help: str) -> Argument:
    return Argument(names, help, default=False)


def _value(*names: str, metavar: str, help: str, **more: Any) -> Argument:
    return Argument(names, help, metavar, **more)


_COMPLETES = {"DIR": "directories", "DIR[:ro]": "directories", "YAML": "files", "VM": "vms"}


def _of_setting(row: Setting) -> Argument:
    text = row.help + (f" [{row.env}]" if row.env else "")
    completes = _COMPLETES.get(row.metavar, "")
    return Argument(row.flags, text, row.metavar, repeat=row.repeat, key=row.key, completes=completes)


@dataclass(frozen=True)
class Verb:
    """One subcommand, and which options it takes: those that have an effect there, no others.

    `run`: MODULE:FUNCTION below our package, called with an `Invocation`; it returns the exit code. `check`: a
    function that raises UsageError for what is typed wrongly, before anything of the host is looked at.
    `arguments`: its own. `settings`: the keys of the settings table whose options it takes. `rest`: what may
    follow `--`.
    `changes`: it changes something, so it has --dry-run. `force`: it stops or asks, so it has --force. `json`: its
    result can be data (not where the output is another program's). `project`: it is about one project, so it has
    --dir. `installs`: run by root, it first installs the system's packages. `as_user`: root becomes the user
    behind sudo for it.
    """

    name: str
    help: str
    run: str
    examples: tuple[str, ...] = ()
    arguments: tuple[Argument, ...] = ()
    settings: tuple[str, ...] = ()
    rest: str = ""
    check: str = ""
    changes: bool = True
    force: bool = False
    json: bool = True
    project: bool = True
    hidden: bool = False
    installs: bool = False
    as_user: bool = True

    @property
    def typed(self) -> str:
        """How it is called: `claude-sandbox stop`."""
        return f"{ME} {self.name}".rstrip()

    @property
    def setting_arguments(self) -> list[Argument]:
        return [_of_setting(row) for row in SETTINGS if row.key in self.settings]

    @property
    def common_arguments(self) -> list[Argument]:
        """Those of COMMON that it takes; a name that is one of its own (`events -f`) is left out."""
        own = {name for argument in self.arguments for name in argument.names}
        taken = [argument for needs, argument in COMMON if not needs or getattr(self, needs)]
        kept = [(each, tuple(name for name in each.names if name not in own)) for each in taken]
        return [replace(argument, names=names) for argument, names in kept if names]

    @property
    def flags(self) -> list[str]:
        """Every option that it takes, sorted."""
        return option_names([*self.arguments, *self.setting_arguments, *self.common_arguments])


def option_names(arguments: Sequence[Argument]) -> list[str]:
    return sorted({name for argument in arguments if argument.is_option for name in argument.names})


# Options of every verb, or of those that have the named attribute.
COMMON = (
    ("project", _value("-d", "--dir", metavar="DIR", help="the project (default: the current directory)",
                       completes="directories")),
    ("force", _switch("-f", "--force", help="stop by force; do not ask")),
    ("", _switch("-y", "--yes", help="answer yes to every question")),
    ("", _switch("-v", "--verbose", help="show every command that is run")),
    ("", _switch("-q", "--quiet", help="only warnings, errors and what was asked for")),
    ("json", _switch("--json", help="print data as JSON")),
    ("changes", _switch("--dry-run", help="print what would be done instead of doing it")),
    ("", _switch("-h", "--help", help="print this help")),
    ("", _switch("--version", help="print the version")),
)  # fmt: skip

_CHANGE = ("settings", "ports", "cpus", "memory", "disk", "full-clone", "mounts")  # of a VM that is there
_MAKE = (*_CHANGE, "clone-from", "template")
_ROWS = (
    Verb(CLAUDE, "make sure that the project's sandbox runs, and run Claude Code in it", "cli.verbs.session:claude",
         ("", "-p 3000 --memory 8GiB", "-- --resume", "-d ~/projects/app --new"),
         (_switch("--new", help="start another Claude beside the one that runs"),),
         (*_MAKE, "voice"), "CLAUDE-ARGS", force=True, json=False, installs=True),
    Verb("shell", "a login shell in the sandbox, or one command", "cli.verbs.session:shell",
         ("shell", "shell -- make test", "shell < script.sh"), (), _MAKE, "CMD", force=True, json=False, installs=True),
    Verb("create", "make the sandbox without attaching to it", "cli.verbs.sandbox:create",
         ("create", "create -c my-base --disk 50GiB"), (), _MAKE, force=True, installs=True),
    Verb("start", "start the sandbox without attaching to it", "cli.verbs.sandbox:start", ("start",), (), _MAKE,
         force=True, installs=True),
    Verb("stop", "stop this project's sandbox", "cli.verbs.sandbox:stop", ("stop", "stop -f"), force=True),
    Verb("restart", "stop and start, applying changed settings", "cli.verbs.sandbox:restart", ("restart -p 8080",), (),
         _CHANGE, force=True),
    Verb("stop-all", "stop every sandbox", "cli.verbs.sandbox:stop_all", ("stop-all",), force=True, project=False),
    Verb("status", "the base VM, the servers and every sandbox", "cli.verbs.overview:status",
         ("status", "status --json"), (), ("clone-from", "template"), changes=False),
    Verb("list", "every sandbox, a line each", "cli.verbs.overview:list_sandboxes", ("list", "list --json"),
         changes=False, project=False),
    Verb("info", "everything about this project's sandbox", "cli.verbs.overview:info", ("info", "info --json"),
         changes=False),
    Verb("watch", "a live view of every sandbox: what Claude wants, since when; keys to attach, answer, stop",
         "cli.verbs.attention:watch", ("watch", "watch --json"), changes=False, force=True, project=False),
    Verb("next", "attach to the Claude that has waited longest for you (exit code 1: none does)",
         "cli.verbs.attention:next_waiting", ("next", "next --json"), project=False),
    Verb("reply", "answer a Claude in its tmux pane: a choice of its dialog, or a text; without TEXT show what it asks",
         "cli.verbs.attention:reply",
         ("reply app", "reply app yes", "reply app 2", "reply claude-sandbox-app -- --verbose, please",
          "reply ~/projects/app - < notes.txt"),
         (_value("name", metavar="NAME", help="a VM's name, a project's name or its path", completes="sandboxes"),
          _value("text", nargs="?", metavar="TEXT", help="number or label of a choice, or a text; - reads stdin"),
          _value("--session", metavar="ID", help="which session, if several wait (the beginning of its id)"),
          _value("--seq", metavar="N", help="only if it still asks what it asked at this event")),
         rest="TEXT", project=False),
    Verb("notify", "show a test notification by every way, and say which of them work", "cli.verbs.attention:notify",
         ("notify test",), (_value("action", choices=("test",), metavar="test", help="what to do"),), project=False),
    Verb("delete", "delete this project's sandbox, never a file of the project", "cli.verbs.sandbox:delete",
         ("delete", "delete -y"), force=True),
    Verb("prune", "delete sandboxes by name prefix, or those whose project is gone; free caches",
         "cli.verbs.prune:prune",
         ("prune", "prune claude-sandbox-test", "prune --orphans -y", "prune --cache"),
         (_value("prefix", nargs="?", default="", metavar="PREFIX", help="start of the VM names"),
          _switch("--orphans", help="only those whose project directory is gone"),
          _switch("--cache", help="no sandbox: free what nothing uses and what can be made again (disks, images)"),
          _value("--forget-home", metavar="DIR", completes="directories",
                 help="with --cache: the LIMA_HOME DIR was deleted for good; keep no disk for its VMs")),
         force=True, project=False),
    Verb("update", "bring a newer Claude Code into this project's sandbox", "cli.verbs.sandbox:update", ("update",), (),
         _MAKE, force=True),
    Verb("events", "hook events of every sandbox: permissions asked for, turns ended, …",
         "cli.verbs.events:show", ("events", "events -f --json", "events --since 2h"),
         (_switch("-f", "--follow", help="go on with what happens now"),
          _value("--since", metavar="TIME", help="from 90s, 10m, 2h or 1d ago, or since 20:15 or a date and time")),
         changes=False, project=False),
    Verb("restart-hooks", "stop and start the server that receives these events", "cli.verbs.events:restart_server",
         ("restart-hooks",), project=False),
    Verb("rebuild-tools-vm", "build the tools VM of which sandboxes are cloned", "cli.verbs.base_vm:rebuild",
         ("rebuild-tools-vm", "rebuild-tools-vm --only claude,node,git", "rebuild-tools-vm --from-packages"),
         (_value("name", nargs="?", default="tools-vm", metavar="NAME", help="its name (tools-vm)"),
          _value("--only", metavar="TOOL,…", help="build a smaller one with these tools"),
          _switch("--from-packages", help="build from package registries alone")),
         ("cpus", "memory", "disk"), check="cli.verbs.base_vm:check_arguments", force=True, installs=True),
    Verb("setup", "install what this host lacks", "cli.verbs.host:setup", ("setup", "setup -y"), project=False,
         installs=True),
    Verb("doctor", "check this host, with a remedy for what is wrong", "cli.verbs.host:doctor",
         ("doctor", "doctor --json"), changes=False, project=False),
    Verb("settings", "compare the settings directory with the sandbox (diff), or take changes over (pull)",
         "cli.verbs.settings:settings", ("settings diff", "settings pull CLAUDE.md"),
         (_value("action", choices=("diff", "pull"), metavar="diff|pull",
                 help="compare, or take the sandbox's changes over"),
          _value("paths", nargs="*", metavar="PATH", default=[], help="only these files")),
         ("settings",), force=True),
    Verb("login", "store a long-lived token (from `claude setup-token`) for all sandboxes", "cli.verbs.login:login",
         ("login", "login < token.txt", "login --forget", "login --undo"),
         (_switch("--forget", help="remove the stored token"),
          _switch("--undo", help="no token: undo the last change of the login by a sandbox"),
          _switch("--take", help="no token: use the login made in this project's sandbox in all")),
         ("settings",), check="cli.verbs.login:check_arguments"),
    Verb("approve", "allow what this project's .claude-sandbox.yaml asks for", "cli.verbs.settings:approve",
         ("approve",), force=True),
    Verb("completion", "print a completion script for bash, zsh or fish", "cli.verbs.about:completion",
         ("completion bash > ~/.local/share/bash-completion/completions/claude-sandbox",),
         (_value("shell", choices=("bash", "zsh", "fish"), metavar="bash|zsh|fish", help="which shell"),),
         changes=False, json=False, project=False, as_user=False),
    Verb("uninstall", "remove what claude-sandbox put on this host, after showing it", "cli.verbs.uninstall:uninstall",
         ("uninstall",), force=True, project=False),
    Verb("version", "print the version", "cli.verbs.about:version", ("version", "version --json"), changes=False,
         project=False, as_user=False),
    Verb("help", "print this help, or that of a verb", "cli.verbs.about:help_page", ("help shell",),
         (_value("verb", nargs="?", default="", metavar="VERB", help="which verb"),),
         changes=False, json=False, project=False, as_user=False),
    Verb("_session", "run a prepared session (internal)", "cli.verbs.session:run_prepared",
         arguments=(_value("file", metavar="FILE", help="where it is"),), json=False, hidden=True, as_user=False),
    Verb("_open", "show a session's terminal (internal)", "cli.verbs.attention:open_terminal",
         arguments=(_value("uuid", metavar="UUID", help="whose"),), json=False, hidden=True),
)  # fmt: skip
VERBS = {verb.name: verb for verb in _ROWS}
SHOWN = tuple(verb for verb in _ROWS if verb.name and not verb.hidden)


def known_arguments() -> list[Argument]:
    """The options and arguments of all verbs."""
    common = [argument for _, argument in COMMON]
    return [
        *common,
        *(argument for verb in _ROWS for argument in verb.arguments),
        *(_of_setting(row) for row in SETTINGS if row.flags),
    ]

"""docs/configuration.md, made from the settings table so that it never lags behind.

`scripts/reference` writes it; a test compares the committed page with `markdown()`.
"""

from __future__ import annotations

import re

from _claude_sandbox.config import table as config_table
from _claude_sandbox.config.table import APPROVAL, FREE, LIMITED, NEVER, SETTINGS, Setting
from _claude_sandbox.system import units

_HEAD = f"""# Configuration

<!-- Generated from the settings table: change _claude_sandbox/cli/config_page.py or config/table.py, then run scripts/reference. -->

## Where a value comes from

The first of these that sets it:

1. the option on the command line, before or after the verb
2. the environment variable (an empty one counts as not set)
3. the project's file `{config_table.PROJECT_FILE}`, as far as it may (last column of the table)
4. your own file `config.yaml`
5. the default

`--clone-from` or `--template` on the command line also overrides the other of the two in the environment or a
file.

| | Linux | macOS |
|---|---|---|
| your file | `~/.config/claude-sandbox/config.yaml` | `~/Library/Application Support/claude-sandbox/config.yaml` |
| state: locks, logs, approvals | `~/.local/state/claude-sandbox` | `~/Library/Application Support/claude-sandbox` |
| data: golden disks, Lima if `setup` installed it | `~/.local/share/claude-sandbox` | `~/Library/Application Support/claude-sandbox` |
| cache: images, downloads | `~/.cache/claude-sandbox` | `~/Library/Caches/claude-sandbox` |
| settings directory | `~/.claude-sandbox/.claude` | the same |
| VMs | `$LIMA_HOME`, else `~/.lima` | the same |

On Linux `XDG_CONFIG_HOME`, `XDG_STATE_HOME`, `XDG_DATA_HOME` and `XDG_CACHE_HOME` move the first four.

## The files

Both are YAML with the keys of the table. Relative paths start at the file's directory, on the command line
and in the environment at the current directory; `~` is your home. An unknown key, a bad value or a duplicate
key is an error with file and line. YAML aliases and more than 64 KiB are refused.

Your file:

```yaml
clone-from: my-base
memory: 8GiB
ports: [3000, 8080:80]        # HOST:GUEST, forwarded from 127.0.0.1
mounts: [~/datasets:ro]
proxy: host
max-cpus: 8                   # what a project's file may ask for at most
max-memory: 16GiB
notify: [needs_input, failed] # not when Claude has merely finished
notify.command: [/home/me/bin/to-my-phone]
notify.quiet: 22:00-07:00
```

A project's:

```yaml
cpus: 4
ports: [5173]
packages: [postgresql-client, ffmpeg]
mounts: [../shared-assets:ro] # asks for your approval
```

## Approval

Whoever can write the project can write its file, Claude in the sandbox included. What could reach the host
(`approval` in the table) is therefore used only after you looked at it: on a terminal you are asked, and
`claude-sandbox approve` does the same later. The answer is bound to the file's content and to where it
leads: the resolved directory of each mount and of the settings, the content of a template. Any change of one of
these asks again. Mounts and settings must be outside of the project, which the sandbox has anyway
([security](security.md)). It is kept in the state directory, which no sandbox sees. Only `approve -y` needs no answer:
`-y` on another verb does not stand for having
looked. A value given on the command line or in the environment takes the place of the project's wish.

## The settings
"""

_TAIL = """
A size is written `8GiB` or `512MiB` (`8G` and `8GB` mean the same). A change of cpus, memory, disk, ports,
mounts or settings directory on an existing sandbox is made at its next start, and packages that it does not
have yet are installed then; `claude-sandbox restart` does it now. A disk can only grow. Base VM and template
count when a sandbox is made: another one on the command line is an error where there is a sandbox already.

An option that would have no effect with a verb is a usage error, which says where it goes; each verb's
`--help` has those that it takes. What shall hold for every call belongs into the variable or your file.

## Other variables

| variable | |
|---|---|
| `LIMA_HOME` | Lima's directory, as for `limactl` |
| `CLAUDE_CODE_OAUTH_TOKEN`, `ANTHROPIC_AUTH_TOKEN`, `ANTHROPIC_API_KEY` | the login for sandboxes, the first that is set ([settings and login](settings-and-login.md)) |
| `UV_PROJECT_ENVIRONMENT` | handed to the sandbox; `.venv-agent` if it is not set |
| `CLAUDE_SANDBOX_DEBUG` | any value: show every command that is run, and tracebacks of our own bugs |
| `NO_COLOR` | any value: no colours |
"""

_IN_PROJECT = {FREE: "yes", LIMITED: "up to `max-{key}`", APPROVAL: "approval", NEVER: "no"}


def markdown() -> str:
    """The whole page."""
    rows = [
        ("key", "option", "variable", "default", "in a project's file", "meaning"),
        ("---",) * 6,
        *(_row(setting) for setting in SETTINGS),
    ]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{_HEAD}\n{table}\n{_TAIL}"


def _row(setting: Setting) -> tuple[str, ...]:
    meaning, default = _split_default(setting.help)
    return (
        _code(setting.key),
        ", ".join(_code(f"{flag} {setting.metavar}".rstrip()) for flag in setting.flags),
        _code(setting.env) if setting.env else "",
        default or _default(setting),
        _IN_PROJECT[setting.in_project].format(key=setting.key),
        meaning[:1].upper() + meaning[1:],
    )


def _split_default(text: str) -> tuple[str, str]:
    """A help text without its `(default: …)`, and that default."""
    match = re.search(r" ?\(default: (.*?)\)", text)
    return (text.replace(match[0], ""), match[1]) if match else (text, "")


def _default(setting: Setting) -> str:
    if setting.key == "settings":
        return "`~/.claude-sandbox/.claude`"
    if isinstance(setting.default, bool):
        return "`host`" if setting.default else "`none`"
    return _code(units.format_size(setting.default)) if isinstance(setting.default, int) else "none"


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"

"""Completion scripts for bash, zsh and fish, made from the table of verbs."""

from __future__ import annotations

import shlex

from _claude_sandbox.cli import parser
from _claude_sandbox.cli.verb_table import ME, SHOWN, known_arguments

_SANDBOXES = f"{ME} list 2>/dev/null | awk 'NR>1{{print $1}}'"
# What an argument's value is (`Argument.completes`), by shell: the command that offers such values.
SOURCES = {
    "directories": {"bash": "-d", "zsh": "_files -/", "fish": "(__fish_complete_directories)"},
    "files": {"bash": "-f", "zsh": "_files", "fish": "(__fish_complete_path)"},
    "vms": {
        "bash": '-W "$(limactl list -q 2>/dev/null)"',
        "zsh": 'compadd -- ${(f)"$(limactl list -q 2>/dev/null)"}',
        "fish": "(limactl list -q 2>/dev/null)",
    },
    "sandboxes": {
        "bash": f'-W "$({_SANDBOXES})"',
        "zsh": f'compadd -- ${{(f)"$({_SANDBOXES})"}}',
        "fish": f"({_SANDBOXES})",
    },
}


def script(shell: str) -> str:
    """The script for `bash`, `zsh` or `fish`."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def _option_values() -> dict[str, list[str]]:
    """What the shells offer after which options: {"directories": ["-d", "--dir", …]}."""
    found: dict[str, list[str]] = {}
    for argument in known_arguments():
        if argument.is_option and argument.completes:
            found.setdefault(argument.completes, []).extend(argument.names)
    return found


def _first_values() -> dict[str, str]:
    """What the shells offer right after which verb: {"completion": "bash zsh fish", "reply": "sandboxes"}."""
    first = {
        verb.name: verb.arguments[0] for verb in SHOWN if verb.arguments and not verb.arguments[0].is_option
    }
    kinds = {name: argument.completes or " ".join(argument.choices) for name, argument in first.items()}
    return {name: kind for name, kind in kinds.items() if kind}


def _cases(shell: str, words: str, offer: str) -> str:
    """The lines of a `case` on the previous word. `words`: how the shell offers a list of words."""
    after = {
        **{"|".join(names): kind for kind, names in _option_values().items()},
        **_first_values(),
    }
    lines = [
        f"    {pattern}) {offer}{SOURCES[kind][shell] if kind in SOURCES else words.format(kind)}; return;;"
        for pattern, kind in after.items()
    ]
    return "\n".join(lines)


def _bash() -> str:
    verbs = " ".join(verb.name for verb in SHOWN)
    # Before the verb any option is allowed; after it those that it takes.
    taken = "\n".join(
        f'      {verb.name}) _claude_sandbox_offer -W "{" ".join(verb.flags)}";;' for verb in SHOWN
    )
    # macOS has bash 3.2: no `mapfile`, no `compopt`.
    return f"""# bash completion of claude-sandbox
_claude_sandbox_offer() {{
  local line
  COMPREPLY=()
  while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen "$@" -- "$cur")
}}
_claude_sandbox() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}}
  case $prev in
{_cases("bash", '-W "{}"', "_claude_sandbox_offer ")}
  esac
  local word verb=
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case " {verbs} " in *" $word "*) verb=$word; break;; esac
  done
  case $cur in
    -*) case $verb in
{taken}
      *) _claude_sandbox_offer -W "{" ".join(parser.known_flags())}";;
      esac;;
    *) _claude_sandbox_offer -W "{verbs}";;
  esac
}}
complete -F _claude_sandbox claude-sandbox
"""


def _zsh() -> str:
    lines = "\n".join(f"    {shlex.quote(verb.name + ':' + verb.help.replace(':', ' '))}" for verb in SHOWN)
    return f"""#compdef claude-sandbox
_claude_sandbox() {{
  local -a verbs
  verbs=(
{lines}
  )
  case ${{words[CURRENT-1]}} in
{_cases("zsh", "compadd {}", "")}
  esac
  if [[ $PREFIX == -* ]]; then
    compadd -- {" ".join(parser.known_flags())}
  else
    _describe verb verbs
  fi
}}
compdef _claude_sandbox claude-sandbox
"""


def _fish() -> str:
    values = {flag: SOURCES[kind]["fish"] for kind, flags in _option_values().items() for flag in flags}
    begin = f"complete -c {ME}"
    lines = ["# fish completion of claude-sandbox", f"{begin} -f"]
    lines += [
        f"{begin} -n __fish_use_subcommand -a {verb.name} -d {shlex.quote(verb.help)}" for verb in SHOWN
    ]
    for flag in parser.known_flags():
        name = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
        value = f" -r -a {shlex.quote(values[flag])}" if flag in values else ""
        lines.append(f"{begin} {name}{value}")
    for verb, kind in _first_values().items():
        offered = SOURCES[kind]["fish"] if kind in SOURCES else kind
        lines.append(f"{begin} -n '__fish_seen_subcommand_from {verb}' -a {shlex.quote(offered)}")
    return "\n".join(lines) + "\n"

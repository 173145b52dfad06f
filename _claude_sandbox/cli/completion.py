"""Completion scripts, made from the tables of verbs and options so that they never lag behind."""

from __future__ import annotations

from _claude_sandbox.cli import parser


def _words() -> tuple[list[str], list[str]]:
    verbs = [v.name for v in parser.VERBS.values() if v.name and not v.hidden]
    return verbs, parser.known_flags()


def script(shell: str) -> str:
    """The script for `bash`, `zsh` or `fish`."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def _bash() -> str:
    verbs, flags = _words()
    # Before the verb any option is allowed; after it those that it takes.
    taken = "\n".join(
        f'      {name}) _claude_sandbox_offer -W "{" ".join(parser.flags_of(parser.VERBS[name]))}";;'
        for name in verbs
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
    -d|--dir|-s|--settings|--mount) _claude_sandbox_offer -d; return;;
    -t|--template) _claude_sandbox_offer -f; return;;
    -c|--clone-from) _claude_sandbox_offer -W "$(limactl list -q 2>/dev/null)"; return;;
    completion) _claude_sandbox_offer -W "bash zsh fish"; return;;
    settings) _claude_sandbox_offer -W "diff pull"; return;;
    notify) _claude_sandbox_offer -W "test"; return;;
    reply) _claude_sandbox_offer -W "$(claude-sandbox list 2>/dev/null | awk 'NR>1{{print $1}}')"; return;;
  esac
  local word verb=
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case " {" ".join(verbs)} " in *" $word "*) verb=$word; break;; esac
  done
  case $cur in
    -*) case $verb in
{taken}
      *) _claude_sandbox_offer -W "{" ".join(flags)}";;
      esac;;
    *) _claude_sandbox_offer -W "{" ".join(verbs)}";;
  esac
}}
complete -F _claude_sandbox claude-sandbox
"""


def _zsh() -> str:
    lines = "\n".join(
        f"    {_quoted(v.name + ':' + v.help.replace(':', ' '))}"
        for v in parser.VERBS.values()
        if v.name and not v.hidden
    )
    flags = " ".join(_words()[1])
    return f"""#compdef claude-sandbox
_claude_sandbox() {{
  local -a verbs
  verbs=(
{lines}
  )
  case ${{words[CURRENT-1]}} in
    -d|--dir|-s|--settings|--mount) _files -/; return;;
    -t|--template) _files; return;;
    -c|--clone-from) compadd -- ${{(f)"$(limactl list -q 2>/dev/null)"}}; return;;
    completion) compadd bash zsh fish; return;;
    settings) compadd diff pull; return;;
    notify) compadd test; return;;
    reply) compadd -- ${{(f)"$(claude-sandbox list 2>/dev/null | awk 'NR>1{{print $1}}')"}}; return;;
  esac
  if [[ $PREFIX == -* ]]; then
    compadd -- {flags}
  else
    _describe verb verbs
  fi
}}
compdef _claude_sandbox claude-sandbox
"""


def _fish() -> str:
    lines = ["# fish completion of claude-sandbox", "complete -c claude-sandbox -f"]
    for verb in parser.VERBS.values():
        if verb.name and not verb.hidden:
            lines.append(
                f"complete -c claude-sandbox -n __fish_use_subcommand -a {verb.name} -d {_quoted(verb.help)}"
            )
    for flag in _words()[1]:
        kind = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
        directory = flag in ("-d", "--dir", "-s", "--settings", "--mount")
        value = " -r -a '(__fish_complete_directories)'" if directory else ""
        lines.append(f"complete -c claude-sandbox {kind}{value}")
    for shell in ("bash", "zsh", "fish"):
        lines.append(f"complete -c claude-sandbox -n '__fish_seen_subcommand_from completion' -a {shell}")
    lines.append("complete -c claude-sandbox -n '__fish_seen_subcommand_from notify' -a test")
    names = "claude-sandbox list 2>/dev/null | awk \\'NR>1{print $1}\\'"
    lines.append(f"complete -c claude-sandbox -n '__fish_seen_subcommand_from reply' -a '({names})'")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "'\\''") + "'"

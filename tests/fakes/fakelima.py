"""A stateful stand-in for limactl 2.2.0: the command line and `list`; see README.md."""

from __future__ import annotations

import json
import re
import sys

import fakelib
import limamake
import limarun
from fakelib import fatal, logrus
from limainstance import HOME, VERSION, Instance, names


def list_(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    present = names()
    if not present and not arguments:
        logrus("warning", "No instance found. Run `limactl create` to create an instance.")
        return 0
    for name in present:
        if not (HOME / name / "lima.yaml").exists():
            problem = f"stat {HOME}/{name}/lima.yaml: no such file or directory"
            logrus("warning", f"The directory `{HOME}` does not look like a valid Lima directory: {problem}")
            break
    unmatched = [name for name in arguments if name not in present]
    for name in unmatched:
        logrus("warning", f"No instance matching {name} found.")
    found = []
    for name in arguments or present:
        if name in unmatched:
            continue
        instance = Instance(name)
        try:
            instance.inspect()
        except FileNotFoundError:
            instance.status = "Broken"
            instance.errors = [f"open {instance.dir}/lima.yaml: no such file or directory"]
        if instance.errors:
            logrus("warning", f"instance `{name}` has errors", errors="[" + " ".join(instance.errors) + "]")
        found.append(instance)
    for instance in found:
        if "json" in options or options.get("format") == "json":
            print(instance.as_json())
        elif options.get("format"):
            print(render(options["format"], instance))
        else:
            print(f"{instance.name}\t{instance.status}\t{instance.dir}")
    if unmatched:
        fatal("unmatched instances")
    return 0


def render(template: str, instance: Instance) -> str:
    def value(match: re.Match[str]) -> str:
        try:
            content = instance.field(match[2])
        except KeyError:
            fatal(
                f'template: format:1:7: executing "format" at <.{match[2]}>: '
                f"can't evaluate field {match[2]} in type store.FormatData"
            )
        return json.dumps(content) if match[1] else str(content)

    return re.sub(r"\{\{ ?(json )?\.(\w+) ?\}\}", value, template)


VERBS = {
    "list": list_, "ls": list_, "template": limamake.template, "tmpl": limamake.template,
    "create": limamake.create, "clone": limamake.clone, "start": limarun.start, "stop": limarun.stop,
    "delete": limarun.delete, "rm": limarun.delete, "protect": limamake.protect,
    "unprotect": limamake.unprotect, "shell": limarun.shell,
}  # fmt: skip
VALUED = ("--format", "--name", "--timeout", "--workdir", "--log-level", "--log-format")
SHORT = {"-f": "--force", "-q": "--quiet", "-y": "--yes"}


def split(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options and positional arguments; for `shell` everything after the instance is the command."""
    options: dict[str, str] = {}
    positional: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if positional[:1] == ["shell"] and len(positional) >= 2:
            positional.append(argument)
        elif argument in SHORT and not (argument == "-f" and positional[:1] in (["list"], ["ls"])):
            options[SHORT[argument][2:]] = ""
        elif argument == "-f":
            options["format"] = next(rest)
        elif argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            options[key] = value if equals else next(rest) if argument in VALUED else ""
        else:
            positional.append(argument)
    return options, positional


def main() -> int:
    argv = sys.argv[1:]
    fakelib.log_call("limactl", argv)
    options, positional = split(argv)
    verb = "version" if "version" in options else positional[0] if positional else "help"
    fault = fakelib.fault_for(verb, argv)
    fault.first()
    if verb == "version":
        print(f"limactl version {VERSION}")
        return 0
    if verb not in VERBS:
        fatal(f'unknown command "{verb}" for "limactl"')
    code = VERBS[verb](options, positional[1:], fault)
    sys.stdout.flush()
    fault.at("after")
    return code

"""Making instances with the fake limactl: create, clone, templates; and their protection."""

from __future__ import annotations

from pathlib import Path

import fakedisk
import fakelib
import limaconfig
from fakelib import fatal, logrus
from limaconfig import Invalid
from limainstance import HOME, VERSION, Instance, check_new

TMP_SUFFIXES = (".pid", ".sock", ".tmp")
TEMPLATES = {
    "default": 'images:\n- {location: "https://images.example/ubuntu.img", arch: x86_64}\nmounts:\n- {location: "~"}\n',
    "ubuntu-lts": 'images:\n- {location: "https://images.example/ubuntu.img", arch: x86_64}\nmounts:\n- {location: "~"}\n',
    "debian-12": 'images:\n- {location: "https://images.example/debian.img", arch: x86_64}\nmountTypesUnsupported: ["9p"]\n',
}


def template(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    if arguments[:1] != ["copy"] or len(arguments) != 3:
        fatal('unknown command "template"')
    print(template_text(arguments[1]), end="")
    return 0


def template_text(locator: str) -> str:
    if locator.startswith("template:"):
        name = locator.removeprefix("template:").lstrip("/")
        if name not in TEMPLATES:
            fatal(f"template `{name}.yaml` not found")
        return TEMPLATES[name]
    try:
        return Path(locator).read_text()
    except OSError as error:
        fatal(f"open {locator}: {(error.strerror or '').lower()}")


def create(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    name = options.get("name") or Path(arguments[0]).stem
    directory = Instance(name).dir
    logrus("info", "Terminal is not available, proceeding without opening an editor")
    make(name, template_text(arguments[0]), fault)
    logrus("info", f"Run `limactl start {name}` to start the instance.")
    return 0 if directory.exists() else 1


def make(name: str, text: str, fault: fakelib.Fault) -> None:
    """As instance.Create: all checks first, then the directory; a failure removes it again."""
    directory = HOME / name
    check_new(name, "create")
    try:
        document = limaconfig.parse(text, directory / "lima.yaml")
        limaconfig.check_param(document)
        config = limaconfig.fill(document, directory, {}, {})
        if not config.get("images"):
            raise Invalid("no images are configured (did you set --image-variant to a value not present?)")
        for warning in limaconfig.validate(config):
            logrus("warning", warning)
    except Invalid as error:
        fatal(str(error))
    directory.mkdir(parents=True, mode=0o700)
    (directory / "lima.yaml").write_text(text)
    (directory / "lima-version").write_text(VERSION)
    fault.at("during")
    (directory / "cloud-config.yaml").write_text("#cloud-config\n")
    location = str(config["images"][0].get("location", ""))
    logrus("info", "Attempting to download the image", arch="x86_64", digest="", location=location)
    if location.startswith("/") and not Path(location).exists():
        remove(directory)
        fatal(f"failed to download the image: stat {location}: no such file or directory")
    content = Path(location).read_bytes() if location.startswith("/") else b"base;"
    fakedisk.write(directory / "disk", limaconfig.size(config["disk"]), content=content)
    for part in ("kernel", "initrd"):
        if part in config["images"][0]:
            (directory / part).write_text(part)
    fakelib.make_guest(directory)


def remove(directory: Path) -> None:
    import shutil

    shutil.rmtree(directory)


def clone(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    if len(arguments) != 2:
        fatal(f"`limactl clone` accepts 2 arg(s), received {len(arguments)}.\nSee `limactl clone --help`.")
    try:
        old = Instance(arguments[0]).inspect()
    except FileNotFoundError:
        fatal(f"instance `{arguments[0]}` not found")
    if old.status == "Running":
        fatal("cannot clone a running instance")
    check_new(arguments[1], "clone")
    import shutil

    new = HOME / arguments[1]
    new.mkdir(mode=0o700)
    # In the order of filepath.WalkDir: the disk and the rest before lima.yaml.
    for entry in sorted(old.dir.iterdir()):
        if entry.name == "protected" or entry.name.endswith(TMP_SUFFIXES):
            continue
        if entry.name == "lima.yaml":
            fault.at("during")
            if fault.get("partial"):
                fatal(str(fault.get("fail") or "no space left on device"))
        if entry.is_dir():
            shutil.copytree(entry, new / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, new / entry.name, follow_symlinks=False)
    return 0


def protect(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    return _protection(arguments, True)


def unprotect(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    return _protection(arguments, False)


def _protection(arguments: list[str], wanted: bool) -> int:
    for name in arguments:
        try:
            instance = Instance(name).inspect()
        except FileNotFoundError:
            fatal(
                f"failed to inspect instance `{name}`: open {HOME}/{name}/lima.yaml: no such file or directory"
            )
        mark = instance.dir / "protected"
        if instance.protected == wanted:
            state = "is already" if wanted else "isn't"
            logrus("warning", f"Instance `{name}` {state} protected. Skipping.")
        elif wanted:
            mark.touch(mode=0o400)
            logrus("info", f"Protected `{name}`")
        else:
            mark.unlink()
            logrus("info", f"Unprotected `{name}`")
    return 0

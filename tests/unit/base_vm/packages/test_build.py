"""The guest image from packages: what the host gives, the recipe, the cache (spec 8.2)."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import os
import shutil
import ssl
import tarfile
import time
from pathlib import Path

import pytest

from _claude_sandbox.base_vm import catalogue as base_vm_catalogue
from _claude_sandbox.base_vm.packages import apt_sources
from _claude_sandbox.base_vm.packages import build as packages_build
from _claude_sandbox.base_vm.packages import overlay as packages_overlay
from _claude_sandbox.base_vm.packages import recipe as packages_recipe
from _claude_sandbox.errors import CreateError, HostSetupError
from _claude_sandbox.system import npm, paths
from _claude_sandbox.system.progress import Progress
from _claude_sandbox.system.run import Command, Result
from tests.support.recording import Recorder, failed

DEBIAN = apt_sources.Distribution("debian", "bookworm", "linux-image-amd64")
KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"


def plan(**changes: object) -> packages_recipe.Recipe:
    recipe = packages_recipe.Recipe(
        tools=base_vm_catalogue.choose(["claude", "git"]),
        pins={"claude": "2.1.0", "node": "24.0.0", "npm": "11.0.0", "uv": "1.0"},
        arch=packages_recipe.ARCHES["x86_64"],
        distribution=DEBIAN,
        sources=("deb http://user:secret@mirror.example/debian bookworm main",),
        apt_options=(),
        cas=(),
        small=True,
        week="2026-47",
        files={
            "etc/initramfs-tools/conf.d/x": b"MODULES=list\n",
            "etc/ssh/x.conf": b"x",
            packages_recipe.SETUP: b"true",
        },
    )
    return dataclasses.replace(recipe, **changes)  # type: ignore[arg-type]


# -- apt ---------------------------------------------------------------------------------------------


def etc_apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_the_distributions_own_sources_only(tmp_path: Path) -> None:
    apt = etc_apt(tmp_path)
    (apt / "sources.list").write_text(
        "# a comment\n"
        "deb http://m.example/debian bookworm main contrib # more\n"
        "deb-src http://m.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.asc] http://d.example/linux bookworm main\n"
        "deb http://b.example/debian bookworm-backports main\n"
    )
    (apt / "sources.list.d" / "debian.sources").write_text(
        f"Types: deb\n# why\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
        f"Signed-By: {KEY}\n\n"
        f"Types: deb\nURIs: http://s.example/security\nSuites: bookworm-security\nComponents: main\n"
        f"Signed-By: {KEY}\n"
    )
    (apt / "sources.list.d" / "node.sources").write_text(
        "Types: deb\nURIs: http://n.example/\nSuites: nodistro\nComponents: main\nSigned-By: /k.gpg\n"
    )
    (apt / "sources.list.d" / "off.sources").write_text(
        "Enabled: no\nTypes: deb\nURIs: http://off.example/\nSuites: bookworm\nComponents: main\n"
    )
    (apt / "sources.list.d" / "gone.list.disabled").write_text("deb http://g.example bookworm main\n")
    assert apt_sources.apt_lines(DEBIAN, apt) == [
        "deb http://m.example/debian bookworm main",
        f"deb [signed-by={KEY}] http://m.example/debian bookworm main",
        f"deb [signed-by={KEY}] http://m.example/debian bookworm-updates main",
        f"deb [signed-by={KEY}] http://s.example/security bookworm-security main",
    ]


def test_no_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(HostSetupError, match="No apt source of debian bookworm"):
        apt_sources.apt_lines(DEBIAN, etc_apt(tmp_path))


def test_credentials_stay_on_the_host() -> None:
    line = "deb [signed-by=/k] https://user:pa@ss@mirror.example/debian bookworm main"
    assert "user" not in apt_sources.without_credentials("deb https://user:pw@mirror.example/ x main")
    assert apt_sources.without_credentials(line.replace("pa@ss", "pass")).count("@") == 0


@pytest.mark.parametrize(
    ("text", "codename"),
    [
        ('ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n', "bookworm"),
        ("ID=debian\nVERSION_CODENAME=forky\n", "forky"),
        ('ID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n', "noble"),
    ],
)
def test_distribution(tmp_path: Path, text: str, codename: str) -> None:
    (tmp_path / "os-release").write_text(text)
    assert apt_sources.distribution("amd64", tmp_path / "os-release").codename == codename


@pytest.mark.parametrize(
    "text", ["", "ID=fedora\n", 'ID=debian\nVERSION_ID="11"\nVERSION_CODENAME=bullseye\n']
)
def test_another_host_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "os-release").write_text(text)
    with pytest.raises(HostSetupError, match="Debian >= 12 or Ubuntu"):
        apt_sources.distribution("amd64", tmp_path / "os-release")


def test_apt_options() -> None:
    recorder = Recorder()
    dump = 'Acquire::Check-Date "false";\nAcquire::http::Proxy "http://p";\nAPT::X "1";\n'
    recorder.on("apt-config", then=Result(0, dump.encode()))
    assert apt_sources.apt_options(recorder) == ('Acquire::Check-Date "false"',)


def pem(data: bytes) -> str:
    return ssl.DER_cert_to_PEM_cert(data).strip()


def test_only_cas_that_the_stock_package_lacks(tmp_path: Path) -> None:
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock" / "a.crt").write_text(pem(b"stock"))
    bundle = tmp_path / "bundle"
    bundle.write_text(f"# company\n{pem(b'own')}\n{pem(b'stock')}\n{pem(b'own')}\n")
    assert apt_sources.extra_cas(bundle, tmp_path / "stock") == [pem(b"own")]
    assert apt_sources.extra_cas(tmp_path / "none", tmp_path / "stock") == []


# -- npm ---------------------------------------------------------------------------------------------


def test_npm_packs_in_a_directory_of_its_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()

    def pack(command: Command) -> Result:
        assert command.cwd is not None
        (command.cwd / "x-1.0.tgz").write_bytes(b"tar")
        return Result(0)

    recorder.on("npm", "pack", then=pack)
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    file = npm.fetch(recorder, "@a/x", "1.0")
    assert file.read_bytes() == b"tar" and file.name == "a-x-1.0.tgz"
    assert npm.fetch(recorder, "@a/x", "1.0") == file
    assert len(recorder.calls) == 1, "the second time from the cache"
    assert [f.name for f in file.parent.iterdir()] == [file.name]


def test_npm_that_fails(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    recorder.on("npm", "pack", then=failed("npm error code E404"))
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    with pytest.raises(CreateError, match="x@1 could not be fetched") as raised:
        npm.fetch(recorder, "x", "1")
    assert "E404" in str(raised.value)


def test_the_registry_is_the_hosts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_a, **_k: None)
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    (home / ".npmrc").write_text("fund=false\nregistry = https://mine.example/npm/\n")
    assert npm.registry(Recorder()) == "https://mine.example/npm/"
    monkeypatch.setenv("npm_config_registry", "https://env.example/")
    assert npm.registry(Recorder()) == "https://env.example/"
    monkeypatch.setenv("npm_config_registry", "no address")
    assert npm.registry(Recorder()) is None


def test_integrity(tmp_path: Path) -> None:
    file = tmp_path / "x.tgz"
    file.write_bytes(b"good")
    npm.check_integrity(file, "sha512-" + base64.b64encode(hashlib.sha512(b"good").digest()).decode())
    for wrong in ("sha512-" + base64.b64encode(hashlib.sha512(b"bad").digest()).decode(), "", "sha1-x"):
        with pytest.raises(CreateError, match="integrity"):
            npm.check_integrity(file, wrong)


# -- recipe ------------------------------------------------------------------------------------------


def test_the_key_is_of_all_that_goes_in() -> None:
    keys = {
        plan().key,
        plan(tools=base_vm_catalogue.choose(["claude"])).key,
        plan(pins={"claude": "2.1.1"}).key,
        plan(arch=packages_recipe.ARCHES["aarch64"]).key,
        plan(distribution=apt_sources.Distribution("debian", "trixie", "linux-image-amd64")).key,
        plan(sources=()).key,
        plan(apt_options=('Acquire::Check-Date "false"',)).key,
        plan(cas=("ca",)).key,
        plan(small=False).key,
        plan(week="2026-48").key,
        plan(files={}).key,
    }
    assert len(keys) == 11 and plan().key == plan().key


def test_our_files_are_in() -> None:
    files = packages_recipe.guest_files()
    sshd = files["etc/ssh/sshd_config.d/90-claude-sandbox.conf"]
    assert b"AcceptEnv CLAUDE_SANDBOX_ENV" in sshd and b"KexAlgorithms -" in sshd
    assert b"vm.dirty_ratio = 5" in files["etc/sysctl.d/90-claude-sandbox.conf"]
    assert b"ssh_deletekeys: false" in files["etc/cloud/cloud.cfg.d/90-claude-sandbox.cfg"]
    assert packages_recipe.SETUP in files and "etc/profile.d/claude-sandbox.sh" in files


@pytest.mark.spec("8.2")
def test_mmdebstrap_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@pypi.example/simple")
    command = packages_build.mmdebstrap(Recorder(), plan(), Path("/var/tmp/w"))
    assert "--mode=unshare" in command.argv and command.argv[-3:] == (
        "bookworm",
        "/var/tmp/w/root",
        "/var/tmp/w/sources.list",
    )
    assert any(a.startswith("--include=") and "linux-image-amd64" in a and ",git" in a for a in command.argv)
    assert command.env["CLAUDE_SANDBOX_TOOLS"] == "claude git" and command.env["PIN_UV"] == "1.0"
    assert "secret" not in str(command) and "mirror.example" not in str(command)
    assert command.environment()["PIP_INDEX_URL"].startswith("https://user:secret@")


# -- the root ----------------------------------------------------------------------------------------


def tarball(path: Path, files: dict[str, tuple[bytes, int]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, (data, mode) in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid = len(data), mode, 501
            tar.addfile(info, io.BytesIO(data))
    return path


def test_overlay(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tarball(
        tmp_path / "c.tgz", {"package/claude": (b"elf", 0o644), "package/README.md": (b"", 0o644)}
    )
    monkeypatch.setattr(npm, "fetch", lambda *_a, **_k: package)
    packages_overlay.write_overlay(Recorder(), plan(cas=("CA",)), tmp_path / "o.tar", tmp_path / "log")
    packages_overlay.write_early(plan(), tmp_path / "e.tar")
    with tarfile.open(tmp_path / "o.tar") as tar:
        members = {m.name: m for m in tar}
        assert members["usr/local/bin/claude"].mode == 0o755
        sources = tar.extractfile("etc/apt/sources.list")
        assert sources and b"secret" not in sources.read()
        assert "usr/local/share/ca-certificates/host-0.crt" in members and "etc/ssh/x.conf" in members
        assert all((m.uid, m.gid) == (0, 0) for m in members.values())
        assert not any("initramfs" in name or "README" in name for name in members)
    with tarfile.open(tmp_path / "e.tar") as tar:
        assert {m.name: m.mode for m in tar} == {
            "usr/share/man/man1": 0o755,
            "etc/initramfs-tools/conf.d/x": 0o644,
        }


def test_copy_members_stays_inside(tmp_path: Path) -> None:
    package = tarball(
        tmp_path / "p.tgz",
        {
            "package/bin/npm": (b"x", 0o755),
            "package/../../etc/passwd": (b"x", 0o644),
            "package/a.js": (b"y", 0o644),
        },
    )
    with tarfile.open(tmp_path / "o.tar", "w") as tar:
        packages_overlay.copy_members(package, tar, {"package/": "lib/npm/"})
    with tarfile.open(tmp_path / "o.tar") as tar:
        assert {(m.name, m.mode) for m in tar} == {("lib/npm/bin/npm", 0o755), ("lib/npm/a.js", 0o644)}
    with tarfile.open(tmp_path / "o.tar", "w") as tar, pytest.raises(CreateError, match="does not hold"):
        packages_overlay.copy_members(package, tar, {"package/claude": "x"})


# -- the cache ---------------------------------------------------------------------------------------


@pytest.fixture
def built(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A recorder whose mmdebstrap and qemu-img leave what the real ones would."""
    recorder = Recorder()

    def bootstrap(command: Command) -> Result:
        boot = Path(command.argv[-2]) / "boot"
        boot.mkdir(parents=True)
        for name in ("kernel", "initrd"):
            (boot / f"claude-sandbox.{name}").write_text(name)
        return Result(0)

    def convert(command: Command) -> Result:
        assert Path(command.argv[-2]).stat().st_size == plan().size
        Path(command.argv[-1]).write_text("qcow2")
        return Result(0)

    recorder.on("mmdebstrap", "--mode=unshare", then=bootstrap)
    recorder.on("qemu-img", then=convert)
    monkeypatch.setattr(packages_overlay, "write_overlay", lambda *_: None)
    monkeypatch.setattr(packages_build, "check_space", lambda *_: None)
    monkeypatch.setattr(packages_build, "WORK", tmp_path)
    return recorder


def made(recorder: Recorder) -> int:
    return sum(argv[:2] == ("mmdebstrap", "--mode=unshare") for argv in recorder.argvs())


def test_built_once_and_kept(built: Recorder, tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = packages_build.build(built, plan(), Progress(), log)
    assert packages_build.build(built, plan(), Progress(), log) == first and made(built) == 1
    assert first.disk.read_text() == "qcow2" and first.disk.stat().st_mode & 0o777 == 0o444
    document = first.document()
    assert document["firmware"] == {"legacyBIOS": True}
    cmdline = document["images"][0]["kernel"]["cmdline"]
    assert cmdline == "root=/dev/vda rw console=ttyS0 quiet cryptomgr.notests cgroup.memory=nokmem"
    shutil.rmtree(first.directory)
    packages_build.build(built, plan(), Progress(), log)
    assert made(built) == 2, "rebuilt when it is missing"
    assert not list(tmp_path.glob("claude-sandbox-image-*")), "the work directory is gone"


def test_a_failure_leaves_nothing_and_tells(built: Recorder, tmp_path: Path) -> None:
    built.on(
        "mmdebstrap", "--mode=unshare", then=failed("I: running apt-get\nE: no space left on device", 25)
    )
    with pytest.raises(CreateError, match=r"mmdebstrap failed \(25\)") as raised:
        packages_build.build(built, plan(), Progress(), tmp_path / "log")
    assert "no space left" in str(raised.value) and str(tmp_path / "log") in str(raised.value)
    left = [f.name for f in (paths.cache_dir() / "images").iterdir()]
    assert left == [f"{plan().key}.lock"] and not list(tmp_path.glob("claude-sandbox-image-*"))


def test_what_a_killed_build_left_is_removed(built: Recorder, tmp_path: Path) -> None:
    work = tmp_path / f"claude-sandbox-image-{os.getuid()}-{plan().key}"
    (work / "root" / "etc").mkdir(parents=True)
    packages_build.build(built, plan(), Progress(), tmp_path / "log")
    assert not work.exists()


def test_a_symlink_in_the_way_is_not_followed(built: Recorder, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / f"claude-sandbox-image-{os.getuid()}-{plan().key}").symlink_to(tmp_path / "precious")
    with pytest.raises(CreateError, match="is not yours"):
        packages_build.build(built, plan(), Progress(), tmp_path / "log")
    assert (tmp_path / "precious").exists()


def test_old_images_of_other_recipes_go(built: Recorder, tmp_path: Path) -> None:
    cache = paths.cache_dir() / "images"
    old, young = cache / "old", cache / "young"
    for directory in (old, young):
        directory.mkdir(parents=True)
    long_ago = time.time() - 30 * 86400
    os.utime(old, (long_ago, long_ago))
    packages_build.build(built, plan(), Progress(), tmp_path / "log")
    assert not old.exists() and young.exists()


def test_space(tmp_path: Path) -> None:
    with pytest.raises(CreateError, match="Not enough space"):
        packages_build.check_space(tmp_path, 1 << 60)
    packages_build.check_space(tmp_path, 1)


def test_what_the_host_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == "mmdebstrap" else name)
    with pytest.raises(HostSetupError, match="needs mmdebstrap") as raised:
        packages_recipe.recipe(Recorder(), base_vm_catalogue.TOOLS, {}, small=True)
    assert "apt-get install mmdebstrap" in str(raised.value)

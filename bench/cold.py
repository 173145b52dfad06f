"""A cold sandbox beside plain Lima: our `create` against `limactl clone` and `start` of a stock base.

    python bench/cold.py [--pairs N] [--base tools-vm] [--picture docs/cold.svg]

Both are what a newcomer gets: the base is the default tools VM with every tool (rebuild it without `--only` and
sizes), and each VM has the default size. The stock base is made from it: the same content on a full disk, with
Debian's own kernel, initrd and boot (bench/stock.sh), so cloud-init sets up each boot. Pairs are interleaved (A B, B A, …), whole
processes from outside:

    (a) limactl clone + start + shell true        (b) claude-sandbox create + shell -- true
    (c) start of a stopped VM + shell, both ways  (d) two at once, both ways
    (e) bytes on the disk and resident memory of an idle VM

Writes bench/results/cold.json and, with --picture, bars as SVG. Nothing here is a test: it never fails on speed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pairs import OURS, ROOT, Plain, call, name_of

STOCK = "bench-stock"
IDLE = 20  # seconds that a VM is left alone before its memory is looked at


class Lab:
    """The two kinds of VM: by name for plain Lima, by project directory for ours."""

    def __init__(self, plain: Plain, base: str, place: Path) -> None:
        self.plain, self.base, self.place = plain, base, place

    def document(self, name: str) -> dict[str, Any]:
        import yaml

        value = yaml.safe_load((self.plain.home / name / "lima.yaml").read_text())
        assert isinstance(value, dict)
        return value

    def project(self, number: int) -> Path:
        path = self.place / f"bench-cold-{number}"
        path.mkdir(exist_ok=True)
        return path

    def create(self, number: int) -> None:
        call([OURS, "create", "-y", "-d", str(self.project(number)), "-c", self.base])
        self.shell(number)

    def shell(self, number: int) -> None:
        call([OURS, "shell", "-d", str(self.project(number)), "--", "true"])

    def start(self, number: int) -> None:
        call([OURS, "start", "-d", str(self.project(number))])
        self.shell(number)

    def stop(self, number: int) -> None:
        call([OURS, "stop", "-d", str(self.project(number))])

    def delete(self, number: int) -> None:
        call([OURS, "delete", "-y", "-d", str(self.project(number))])

    # -- plain Lima ------------------------------------------------------------------------------

    def plain_create(self, number: int) -> None:
        self.plain("clone", "--tty=false", STOCK, f"bench-plain-{number}")
        self.plain_start(number)

    def plain_start(self, number: int) -> None:
        name = f"bench-plain-{number}"
        self.plain("start", "--tty=false", "--timeout=30m", name, env=self.plain.start_env)
        self.plain("shell", "--workdir", "/", name, "true")

    def plain_stop(self, number: int) -> None:
        self.plain("stop", "--tty=false", f"bench-plain-{number}")

    def plain_delete(self, number: int) -> None:
        self.plain("delete", "--force", f"bench-plain-{number}")

    # -- the stock base --------------------------------------------------------------------------

    def make_stock(self, boot: Path | None) -> None:
        """A full, plain copy of our base that boots as Debian and Lima do; it stays for the next time.

        Debian's initrd is made in the guest: under emulation that takes a quarter of an hour. `boot` is a directory
        with `kernel` and `initrd` that were made from the same image elsewhere, with the same update-initramfs.
        """
        print("making the stock base …", flush=True)
        self.plain("clone", "--tty=false", self.base, STOCK)
        directory = self.plain.home / STOCK
        full = directory / "disk.full"
        call(["qemu-img", "convert", "-O", "qcow2", str(directory / "disk"), str(full)])
        full.replace(directory / "disk")
        self.plain("start", "--tty=false", "--timeout=30m", STOCK, env=self.plain.start_env)
        script = (ROOT / "bench/stock.sh").read_bytes()
        self._in_guest(f"cat > /tmp/stock.sh && sudo sh /tmp/stock.sh {'' if boot else 'initrd'}", script)
        kernel, initrd = (
            (boot / part).read_bytes() if boot else self._in_guest(f"sudo cat /boot/stock.{part}")
            for part in ("kernel", "initrd")
        )
        self.plain("stop", "--tty=false", STOCK)
        cmdline = b"root=/dev/vda rw console=ttyS0"  # without the words that make ours quicker
        for name, content in (("kernel", kernel), ("initrd", initrd), ("kernel.cmdline", cmdline)):
            (directory / name).unlink()  # it may be a link to the base's
            (directory / name).write_bytes(content)

    def _in_guest(self, script: str, data: bytes = b"") -> bytes:
        argv = [*self.plain.prefix, self.plain.limactl, "shell", "--workdir", "/", STOCK, "sh", "-c", script]
        env = {**os.environ, "LIMA_HOME": str(self.plain.home)}
        done = subprocess.run(argv, input=data, capture_output=True, env=env, check=False)
        if done.returncode:
            raise SystemExit(f"{shlex.join(argv)}:\n{done.stderr.decode(errors='replace')}")
        return done.stdout

    def size(self, name: str) -> dict[str, Any]:
        document = self.document(name)
        return {key: document[key] for key in ("cpus", "memory", "disk")}

    # -- what an idle VM takes -------------------------------------------------------------------

    def footprint(self, name: str) -> dict[str, int]:
        """Bytes: of the directory's files that no other VM shares, all of its files, resident memory."""
        import psutil

        directory = self.plain.home / name
        files = [file.lstat() for file in directory.iterdir()]
        pids = [int(file.read_text()) for file in directory.glob("*.pid")]
        return {
            "own_disk": sum(info.st_blocks * 512 for info in files if info.st_nlink == 1),
            "all_disk": sum(info.st_blocks * 512 for info in files),
            "memory": sum(psutil.Process(pid).memory_info().rss for pid in pids),
        }


def spent(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def both(one: Callable[[int], None], numbers: tuple[int, int]) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, numbers))


def measure(lab: Lab, pairs: int, two: bool) -> dict[str, Any]:
    """Seconds of (a)-(d) pair by pair, bytes of (e)."""
    rows: dict[str, list[tuple[float, float]]] = {"create": [], "start": []}
    footprints: list[dict[str, dict[str, int]]] = []

    def ours() -> tuple[float, float, dict[str, int]]:
        create = spent(lambda: lab.create(1))
        name = name_of(lab.project(1))
        assert lab.size(name) == lab.size(STOCK), "both sides have the same size"
        time.sleep(IDLE)
        footprint = lab.footprint(name)
        lab.stop(1)
        start = spent(lambda: lab.start(1))
        lab.delete(1)
        return create, start, footprint

    def plain() -> tuple[float, float, dict[str, int]]:
        create = spent(lambda: lab.plain_create(1))
        time.sleep(IDLE)
        footprint = lab.footprint("bench-plain-1")
        lab.plain_stop(1)
        start = spent(lambda: lab.plain_start(1))
        lab.plain_delete(1)
        return create, start, footprint

    for number in range(pairs):
        if number % 2 == 0:
            mine, theirs = ours(), plain()
        else:
            theirs, mine = plain(), ours()
        rows["create"].append((mine[0], theirs[0]))
        rows["start"].append((mine[1], theirs[1]))
        footprints.append({"ours": mine[2], "plain": theirs[2]})
        print(f"  pair {number + 1}: create {mine[0]:.1f} beside {theirs[0]:.1f} s, "
              f"start {mine[1]:.1f} beside {theirs[1]:.1f} s, {footprints[-1]}", flush=True)  # fmt: skip
    if two:
        rows["two"] = [two_at_once(lab)]
    return {"seconds": rows, "idle": footprints}


def two_at_once(lab: Lab) -> tuple[float, float]:
    two_ours = spent(lambda: both(lab.create, (1, 2)))
    both(lab.delete, (1, 2))
    two_plain = spent(lambda: both(lab.plain_create, (1, 2)))
    both(lab.plain_delete, (1, 2))
    print(f"  two at once: {two_ours:.1f} beside {two_plain:.1f} s", flush=True)
    return two_ours, two_plain


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """Medians with their spread, and plain divided by ours, pair by pair."""
    out: dict[str, Any] = {}
    for what, rows in measured["seconds"].items():
        times = [plain / ours for ours, plain in rows]
        out[what] = {
            "ours_s": statistics.median(a for a, _ in rows),
            "plain_s": statistics.median(b for _, b in rows),
            "times_faster": statistics.median(times), "least": min(times), "most": max(times),
        }  # fmt: skip
    for what in ("own_disk", "all_disk", "memory"):
        ours, plain = ([row[side][what] for row in measured["idle"]] for side in ("ours", "plain"))
        out[what] = {"ours": statistics.median(ours), "plain": statistics.median(plain)}
    return out


# -- the picture ---------------------------------------------------------------------------------


def picture(found: dict[str, Any], machine: str) -> str:
    """Bars as SVG: each row scaled to its longer side."""
    mib = 1 << 20
    rows = [
        ("New sandbox, first command done", found["create"]["ours_s"], found["create"]["plain_s"], "s"),
        ("Stopped sandbox, command done", found["start"]["ours_s"], found["start"]["plain_s"], "s"),
        *(("Two new ones at once", row["ours_s"], row["plain_s"], "s") for row in [found.get("two")] if row),
        ("Disk of a new sandbox", found["own_disk"]["ours"] / mib, found["own_disk"]["plain"] / mib, "MiB"),
        ("Memory of an idle one", found["memory"]["ours"] / mib, found["memory"]["plain"] / mib, "MiB"),
    ]
    width, left, row = 760, 250, 46
    height = 60 + row * len(rows)
    head = f'viewBox="0 0 {width} {height}" role="img" font-family="system-ui, sans-serif" font-size="13"'
    title = f"claude-sandbox (dark) and limactl clone + start with cloud-init (light); {machine}"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {head}>',
        f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
        f'<text x="16" y="24" fill="#555">{title}</text>',
    ]
    for number, (label, ours, plain, unit) in enumerate(rows):
        y = 44 + number * row
        out.append(f'<text x="{left - 12}" y="{y + 20}" text-anchor="end" fill="#222">{label}</text>')
        for at, value, colour in ((y, ours, "#c15f3c"), (y + 17, plain, "#d8cfc4")):
            length = max(2, round(value / max(ours, plain) * (width - left - 110)))
            out.append(f'<rect x="{left}" y="{at}" width="{length}" height="14" rx="2" fill="{colour}"/>')
            shown = f"{value:.1f}" if value < 100 else f"{value:.0f}"
            out.append(f'<text x="{left + length + 6}" y="{at + 12}" fill="#222">{shown} {unit}</text>')
    return "\n".join([*out, "</svg>\n"])


@contextlib.contextmanager
def projects() -> Iterator[Path]:
    """Where sandboxes' projects are: below the home, so that they appear at the same path in the guest."""
    place = Path(tempfile.mkdtemp(prefix="bench-", dir=Path.home()))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--base", default="tools-vm")
    parser.add_argument("--no-two", action="store_true", help="leave out two at once")
    parser.add_argument("--boot", type=Path, help="stock kernel and initrd of the same image")
    parser.add_argument("--picture", type=Path, help="write bars to this SVG file")
    options = parser.parse_args()
    plain = Plain()
    with projects() as place:
        lab = Lab(plain, options.base, place)
        if not (plain.home / STOCK).exists():
            lab.make_stock(options.boot)
        measured = measure(lab, options.pairs, not options.no_two)
    found = summary(measured)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {plain.accelerator}"
    size = lab.size(options.base)
    result = {"machine": machine, "base": options.base, "size": size, **found, "measured": measured}
    (ROOT / "bench" / "results" / "cold.json").write_text(json.dumps(result, indent=1) + "\n")
    if options.picture:
        options.picture.write_text(picture(found, machine))
    for what, values in found.items():
        print(what, {key: round(value, 2) for key, value in values.items()})


if __name__ == "__main__":
    main()

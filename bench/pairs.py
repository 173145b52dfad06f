"""Times our command against plain limactl doing the same, pair by pair, and prints the ratio.

    python bench/pairs.py status|shell|ssh [--pairs N] [--project DIR] [--vms N]

Interleaved (A B, B A, …), whole processes from outside, after one warm-up each. Prints medians with
their spread and writes a JSON file into bench/results/. Nothing here is a test: it never fails on speed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = str(ROOT / "claude-sandbox")
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Side:
    """One side of a comparison: what is timed."""

    name: str
    run: Callable[[], None]


def call(argv: Sequence[str], env: dict[str, str] | None = None) -> None:
    result = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, **(env or {})}, check=False
    )
    if result.returncode:
        raise SystemExit(f"{argv} ended with {result.returncode}:\n{result.stderr.decode(errors='replace')}")


def timed(side: Side) -> float:
    begun = time.perf_counter()
    side.run()
    return time.perf_counter() - begun


def compare(ours: Side, plain: Side, pairs: int, warm_up: int = 1) -> dict[str, object]:
    """Seconds of both sides and the ratio pair by pair."""
    for _ in range(warm_up):
        timed(ours)
        timed(plain)
    rows = []
    for number in range(pairs):
        order = (ours, plain) if number % 2 == 0 else (plain, ours)
        spent = {side.name: timed(side) for side in order}
        rows.append((spent[ours.name], spent[plain.name]))
        print(
            f"  pair {number + 1}: {ours.name} {rows[-1][0]:.3f} s, {plain.name} {rows[-1][1]:.3f} s",
            flush=True,
        )
    return compare_rows(ours.name, plain.name, rows)


def compare_rows(ours: str, plain: str, rows: Sequence[tuple[float, float]]) -> dict[str, object]:
    """What is written of pairs of seconds: medians, and the ratio pair by pair."""
    ratios = [a / b for a, b in rows]
    extra = [a - b for a, b in rows]
    return {
        "ours": ours, "plain": plain, "pairs": rows,
        "median_ours_s": statistics.median(a for a, _ in rows),
        "median_plain_s": statistics.median(b for _, b in rows),
        "median_ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
        "median_extra_ms": 1000 * statistics.median(extra),
        "extra_ms_min": 1000 * min(extra), "extra_ms_max": 1000 * max(extra),
    }  # fmt: skip


class Plain:
    """limactl with the same binary, LIMA_HOME, user namespace and accelerator as ours."""

    def __init__(self) -> None:
        from _claude_sandbox.host import accelerator, inventory, run_as
        from _claude_sandbox.system import paths
        from _claude_sandbox.system.run import LocalRunner

        runner = LocalRunner()
        self.home = paths.lima_home()
        self.prefix = run_as.limactl_prefix(runner)
        self.limactl = inventory.find_limactl(runner).path
        found = accelerator.detect(runner)
        self.accelerator = found.kind
        # Without what we add for our own VMs: Lima's own words for its CPU.
        self.start_env = {k: v.replace(accelerator.SLOW_STRINGS, "") for k, v in found.start_env.items() if v}

    def __call__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        call([*self.prefix, self.limactl, *arguments], {"LIMA_HOME": str(self.home), **(env or {})})


def status(plain: Plain, pairs: int, vms: int) -> dict[str, object]:
    """`status` beside `limactl list`, with `vms` stopped sandboxes in a LIMA_HOME of its own (0: the real one)."""
    with tempfile.TemporaryDirectory(prefix="cs-bench-", dir="/tmp") as temporary:
        env: dict[str, str] = {}
        if vms:
            make_instances(Path(temporary), vms)
            env = {"LIMA_HOME": temporary}
        ours = Side("claude-sandbox status", lambda: call([OURS, "status"], env))
        theirs = Side("limactl list", lambda: plain("list", env=env))
        return {"vms": vms, **compare(ours, theirs, pairs)}


def make_instances(home: Path, number: int) -> None:
    """Stopped instances with our mark: a lima.yaml is all that `list` reads."""
    import yaml

    from _claude_sandbox.lima import context as lima_context
    from _claude_sandbox.vm import lima_yaml as vm_lima_yaml
    from _claude_sandbox.vm import mark as vm_mark

    (home / "p").mkdir()
    for index in range(number):
        name = f"claude-sandbox-bench-{index}"
        mark = vm_mark.mark_for(name, home / "p")
        share = vm_lima_yaml.Share(home / "p", Path("/mnt/project"), True)
        base = {
            "images": [{"location": "/nonexistent.qcow2", "arch": "x86_64"}],
            "arch": "x86_64",
            "cpus": 2,
            "memory": "4GiB",
            "disk": "20GiB",
        }
        document = vm_lima_yaml.build(
            base, vm_lima_yaml.SandboxSpec(mark, lima_context.GuestUser("bench", 1000), (share,))
        )
        (home / name).mkdir()
        (home / name / "lima.yaml").write_text(yaml.safe_dump(document))
    if os.geteuid() == 0:
        os.chmod(home, 0o755)


def shell(plain: Plain, pairs: int, project: Path) -> dict[str, object]:
    """A warm `shell -- true` beside `limactl shell NAME true`. The sandbox must run."""
    name = name_of(project)
    theirs = Side("limactl shell NAME true", lambda: plain("shell", "--workdir", "/", name, "true"))
    return compare(_true(project), theirs, pairs, warm_up=3)


def ssh(plain: Plain, pairs: int, project: Path) -> dict[str, object]:
    """The same beside ssh through our own master, with the same login shell in the same directory."""
    from _claude_sandbox.lima.limactl import Instance
    from _claude_sandbox.lima.ssh import Guest
    from _claude_sandbox.system import paths
    from _claude_sandbox.system.run import LocalRunner

    name = name_of(project)
    guest = Guest(LocalRunner(), Instance(name, "", plain.home / name), paths.runtime_dir())
    line = f"cd {shlex.quote(str(project))} && exec bash -lc true"
    argv = [*guest.ssh(), "-T", guest.instance.ssh_host, line]
    return compare(_true(project), Side("ssh HOST bash -lc true", lambda: call(argv)), pairs, warm_up=3)


def _true(project: Path) -> Side:
    """The third one is warm: the first prepares the guest, the second leaves a note (session/fast_shell.py)."""
    argv = [OURS, "shell", "-d", str(project), "--", "true"]
    return Side("claude-sandbox shell -- true", lambda: call(argv))


def name_of(project: Path) -> str:
    text = subprocess.run(
        [OURS, "info", "--json", "-d", str(project)], capture_output=True, check=True
    ).stdout
    return str(json.loads(text)["sandbox"]["name"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("status", "shell", "ssh"))
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--project", type=Path, default=Path.cwd())
    parser.add_argument("--vms", type=int, default=0, help="status: with this many sandboxes made for it")
    options = parser.parse_args()
    plain = Plain()
    if options.what == "status":
        result = status(plain, options.pairs or 9, options.vms)
    else:
        way = shell if options.what == "shell" else ssh
        result = way(plain, options.pairs or 9, options.project.resolve())
    result["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    result["limactl"] = shutil.which("limactl") or plain.limactl
    print(
        f"{result['ours']}: {result['median_ours_s']:.3f} s; {result['plain']}: {result['median_plain_s']:.3f} s; "
        f"ratio {result['median_ratio']:.2f} ({result['ratio_min']:.2f} to {result['ratio_max']:.2f}); "
        f"extra {result['median_extra_ms']:.0f} ms ({result['extra_ms_min']:.0f} to {result['extra_ms_max']:.0f})"
    )
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    suffix = f"-{options.vms}vms" if options.vms else ""
    file = results / f"{options.what}{suffix}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {file}")


if __name__ == "__main__":
    main()

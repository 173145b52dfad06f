"""Which accelerator QEMU can really use on this host, found by trying.

/dev/kvm may exist and open while a guest does not get anywhere: nested hosts that emulate the
guest's kernel mode instruction by instruction, or that lack an MSR which QEMU sets. Lima takes KVM
whenever the file is there. So our boot sector is run under the options that Lima uses
(`-machine q35 -cpu host`): it writes R to the serial port, waits for two ticks of the timer (T), goes to
long mode and does 20 million rounds of memory and SSE work (L), then leaves through isa-debug-exit.
That takes 0.4 s under TCG and less under KVM. Where this was found, QEMU 7.2 aborted on `-cpu host`
("failed to set MSR 0x10a"); with that feature masked the sector came to RT and stopped there, and a
Debian kernel was still in its decompressor after minutes. A sector that only wrote one byte from
real mode passed, so it would not have found that.

The answer is remembered per boot of the host and per QEMU, in our state directory.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from _claude_sandbox.system import paths, processes
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.system.run import TIMED_OUT, Command, Result, Runner, missing_program

KVM_DEVICE = Path("/dev/kvm")
PROBE_SECONDS = 8.0
SCHEMA = 2

# What Lima itself passes for TCG; given this way because it takes KVM whenever /dev/kvm is there, and for what
# we add.
_TCG = "-accel tcg,thread=multi,tb-size=512 -cpu max"
# Where a CPU says that its byte-wise string instructions are fast, the kernel clears and copies pages with them.
# Emulated, a step for one byte costs as much as a step for eight (docs/performance.md).
SLOW_STRINGS = ",erms=off,fsrm=off"
_QEMU: Mapping[str, tuple[str, str, str, str]] = {
    "x86_64": ("qemu-system-x86_64", "QEMU_SYSTEM_X86_64", "q35,vmport=off", _TCG + SLOW_STRINGS),
    "aarch64": ("qemu-system-aarch64", "QEMU_SYSTEM_AARCH64", "virt", _TCG),
}

# 16-bit code at 0x7c00, then 64-bit; AT&T syntax beside the bytes.
_BOOT_SECTOR_X86 = """
fa              cli
31c0 8ed8 8ec0 8ed0   xor %ax,%ax; mov %ax,%ds; %es; %ss
bc0070          mov $0x7000,%sp
baf803 b052 ee  mov $0x3f8,%dx; mov $'R',%al; out %al,%dx
fb              sti
8b1e6c04        mov 0x46c,%bx                  # the BIOS counts timer interrupts there
f4 a16c04 29d8 83f802 72f5   1: hlt; mov 0x46c,%ax; sub %bx,%ax; cmp $2,%ax; jb 1b
fa b054 ee      cli; mov $'T',%al; out %al,%dx
fc bf0010 31c0 b90018 f3ab   cld; mov $0x1000,%di; xor %ax,%ax; mov $0x1800,%cx; rep stosw
c70600100320    movw $0x2003,0x1000            # page tables: the first 2 MiB onto themselves
c70600200330    movw $0x3003,0x2000
c70600308300    movw $0x83,0x3000
66b800100000 0f22d8   mov $0x1000,%eax; mov %eax,%cr3
66b820060000 0f22e0   mov $0x620,%eax; mov %eax,%cr4   # PAE, SSE
66b9800000c0 0f32 80cc01 0f30   mov $0xc0000080,%ecx; rdmsr; or $1,%ah; wrmsr   # EFER.LME
0f20c0 24fb 660d01000080   mov %cr0,%eax; and $0xfb,%al; or $0x80000001,%eax
660f0116b07c    lgdtl 0x7cb0
0f22c0 ea7b7c0800   mov %eax,%cr0; ljmp $8,$0x7c7b
b9002d3101      mov $20000000,%ecx             # 0x7c7b, 64-bit from here
ff042500400000 660ffec0 ffc9 75f1   1: incl 0x4000; paddd %xmm0,%xmm0; dec %ecx; jnz 1b
66baf803 b04c ee   mov $0x3f8,%dx; mov $'L',%al; out %al,%dx
66ba0105 b010 ee   mov $0x501,%dx; mov $0x10,%al; out %al,%dx
f4 ebfd         2: hlt; jmp 2b
0000000000000000 00000000009a2000   gdt at 0x7ca0: null, 64-bit code
0f00 a07c0000   its limit and address
"""
_X86_SIZE = 1 << 20  # the BIOS boots no disk smaller than a cylinder; a sparse file
_X86_EXIT = 0x10 << 1 | 1  # what QEMU makes of the byte written to isa-debug-exit

# Runs as firmware at address 0 of the `virt` machine; the PL011 is at 0x9000000; ends by PSCI.
_FIRMWARE_ARM = """
410a8052 0020a1d2 01000039   mov w1,#'R'; mov x0,#0x9000000; strb w1,[x0]
0226a0d2        mov x2,#0x1300000
420400f1 e1ffff54   1: subs x2,x2,#1; b.ne 1b
81098052 01000039   mov w1,#'L'; strb w1,[x0]
0080b052 00001d32 020000d4   mov w0,#0x84000000; orr w0,w0,#8; hvc #0    # SYSTEM_OFF
7f2003d5 ffffff17   2: wfi; b 2b
"""


@dataclass(frozen=True)
class Accelerator:
    """`start_env` changes Lima's environment for a start. `note` is set once per boot of the host."""

    kind: str  # kvm, tcg, hvf or vz
    start_env: Mapping[str, str | None] = field(default_factory=dict)
    note: str | None = None
    reason: str = ""  # why it is not the fast one
    remedy: str = ""


def detect(runner: Runner) -> Accelerator:
    """The accelerator to use; on Linux by a test run of a few seconds, once per boot.

    Raises CommandNotFound without QEMU, HostSetupError when the state directory cannot be used.
    """
    if sys.platform == "darwin":
        return _macos()
    qemu = _QEMU.get(os.uname().machine)
    if qemu is None:  # nothing to run there: Lima's own rule
        return _no_device() if not KVM_DEVICE.exists() else Accelerator("kvm")
    program, variable, *_ = qemu
    if value := os.environ.get(variable):  # the user chose, and Lima reads it too
        return Accelerator("tcg" if "tcg" in value else "kvm", reason=f"{variable} is set")
    if not KVM_DEVICE.exists():
        return _remember(_no_device(), ["no device"])
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return _remember(_no_permission(), ["not ours"])
    found = shutil.which(program)
    if found is None:
        raise missing_program((program,))
    info = Path(found).stat()
    key: list[str | int] = [found, info.st_mtime_ns, info.st_size]
    known = _remembered(key)
    return known if known is not None else _remember(_try_kvm(runner), key)


def _macos() -> Accelerator:
    import platform

    major = int((platform.mac_ver()[0] or "13").split(".")[0])
    return Accelerator("vz" if major >= 13 else "hvf")  # Lima's default since macOS 13


def _no_device() -> Accelerator:
    return _tcg(
        "/dev/kvm is not there",
        "Switch on virtualization in the firmware, or nested virtualization in the hypervisor that this machine "
        "runs on.",
    )


def _no_permission() -> Accelerator:
    import grp

    info = KVM_DEVICE.stat()
    remedy = "sudo usermod -aG {} $USER    then log in again."
    if info.st_gid == 0 or info.st_mode & 0o060 != 0o060:
        remedy = "sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm && " + remedy.format("kvm")
    else:
        try:
            remedy = remedy.format(grp.getgrgid(info.st_gid).gr_name)
        except KeyError:
            remedy = remedy.format(info.st_gid)
    return _tcg("your user may not open /dev/kvm", remedy)


def _try_kvm(runner: Runner) -> Accelerator:
    result = probe(runner)
    if probe_passed(result):
        return Accelerator("kvm")
    words = result.error_text.splitlines()
    if result.returncode == TIMED_OUT:
        why = f"a test guest did not finish under it within {PROBE_SECONDS:g} s"
    else:
        why = f"QEMU says: {words[0]}" if words else f"QEMU ended with code {result.returncode}"
    return _tcg(
        f"/dev/kvm is there but does not work ({why})",
        "This is usual inside another VM. A host with (nested) hardware virtualization is many times faster.",
    )


def probe(runner: Runner, accel: str = "kvm", cpu: str = "host") -> Result:
    """Run the test guest; judge the result with `probe_passed`."""
    machine = os.uname().machine
    program, _, board, _ = _QEMU[machine]
    with tempfile.TemporaryDirectory(prefix="claude-sandbox-") as directory:
        image = Path(directory) / "probe"
        with image.open("wb") as file:
            file.write(probe_image(machine))
            if machine == "x86_64":
                file.truncate(_X86_SIZE)
        command = Command(probe_argv(program, board, accel, cpu, image))
        return runner.run(command, timeout=PROBE_SECONDS, changes=False, limit=4096)


def probe_image(machine: str) -> bytes:
    """At most 512 bytes of machine code."""
    listing = _BOOT_SECTOR_X86 if machine == "x86_64" else _FIRMWARE_ARM
    code = b"".join(map(_row, listing.strip().splitlines()))
    return code.ljust(510, b"\0") + b"\x55\xaa" if machine == "x86_64" else code


def _row(line: str) -> bytes:
    """The bytes of a row: groups of hex digits up to the gap before the comment."""
    return bytes.fromhex(line.split("  ", 1)[0].replace(" ", ""))


def probe_argv(program: str, board: str, accel: str, cpu: str, image: Path) -> tuple[str, ...]:
    boot: tuple[str, ...] = ("-bios", str(image))
    if program.endswith("x86_64"):
        boot = (
            "-device", "isa-debug-exit,iobase=0x501,iosize=1",
            "-drive", f"file={image},format=raw,snapshot=on",
        )  # fmt: skip
    return (
        program, "-machine", board, "-accel", accel, "-cpu", cpu, "-m", "64", "-no-user-config",
        "-nodefaults", "-display", "none", "-no-reboot", "-monitor", "none", "-serial", "stdio", *boot,
    )  # fmt: skip


def probe_passed(result: Result) -> bool:
    return result.returncode in (0, _X86_EXIT) and result.stdout.rstrip().endswith(b"L")


def _tcg(reason: str, remedy: str) -> Accelerator:
    qemu = _QEMU.get(os.uname().machine)
    env = {qemu[1]: f"{qemu[0]} -machine {qemu[2]} {qemu[3]}"} if qemu else {}
    return Accelerator("tcg", env, reason=reason, remedy=remedy)


def _state_file() -> Path:
    return paths.state_dir() / "accelerator.json"


def _remembered(key: list[str | int]) -> Accelerator | None:
    state = read_object(_state_file()) or {}
    boot = processes.boot_id()
    if not boot or (state.get("version"), state.get("boot"), state.get("key")) != (SCHEMA, boot, key):
        return None
    kind, reason, remedy = (str(state.get(name, "")) for name in ("kind", "reason", "remedy"))
    return _tcg(reason, remedy) if kind == "tcg" else Accelerator("kvm") if kind == "kvm" else None


def _remember(found: Accelerator, key: list[str | int]) -> Accelerator:
    """Remember it; its note is for the user unless this boot has had the same."""
    if _remembered(key) is not None:
        return found
    answer = {"kind": found.kind, "reason": found.reason, "remedy": found.remedy}
    write_json(_state_file(), {"version": SCHEMA, "boot": processes.boot_id(), "key": key, **answer})
    if found.kind != "tcg":
        return found
    note = f"No hardware acceleration: {found.reason}. VMs run in emulation, several times slower. {found.remedy}"
    return replace(found, note=note)

"""Which program of the host reads the microphone, as argv; and whether it can, without opening it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RATE, BYTES_PER_SAMPLE = 16000, 2  # mono, signed, little-endian: what Claude's /voice asks for
BYTES_PER_SECOND = RATE * BYTES_PER_SAMPLE

# `-L`: little-endian whatever the host is. SoX reads the default input of CoreAudio, ALSA or PulseAudio.
REC = (
    "rec",
    "-q",
    "--buffer",
    "1024",
    "-t",
    "raw",
    "-r",
    str(RATE),
    "-e",
    "signed",
    "-b",
    "16",
    "-L",
    "-c",
    "1",
    "-",
)
ARECORD = ("arecord", "-q", "-f", "S16_LE", "-r", str(RATE), "-c", "1", "-t", "raw", "-")  # fmt: skip
# On Linux arecord first, as Claude Code does: Debian's rec has no driver without libsox-fmt-*.
_PROGRAMS = {"darwin": (REC,), "linux": (ARECORD, REC)}
_REMEDY = {
    "darwin": "Install SoX: `brew install sox`.",
    "linux": "Install alsa-utils (arecord), or sox with libsox-fmt-all (rec).",
}
_OTHER = "Or name a program that writes raw PCM (16 kHz, mono, signed 16 bit) to stdout: `voice.command`."


@dataclass(frozen=True)
class CaptureCommand:
    """What would capture: an argv, or (with an empty one) why nothing can and what to do about it."""

    argv: tuple[str, ...] = ()
    reason: str = ""
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return bool(self.argv)


def find_command(
    command: Sequence[str] = (),
    *,
    platform: str = sys.platform,
    environ: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
) -> CaptureCommand:
    """How the microphone would be read now. `command`: the user's own program (voice.command).

    Looks at files only, so it can be asked at any time; a USB microphone may come and go.
    """
    path = environ.get("PATH")
    if command:
        if shutil.which(command[0], path=path):
            return CaptureCommand(tuple(command))
        return CaptureCommand(
            reason=f"{command[0]} (voice.command) was not found", remedy="Fix `voice.command`."
        )
    programs = _PROGRAMS.get(platform, _PROGRAMS["linux"])
    found = next((argv for argv in programs if shutil.which(argv[0], path=path)), None)
    remedy = f"{_REMEDY.get(platform, _REMEDY['linux'])} {_OTHER}"
    if found is None:
        names = " and ".join(argv[0] for argv in programs)
        return CaptureCommand(
            reason=f"{names} {'is' if len(programs) == 1 else 'are'} missing", remedy=remedy
        )
    if platform == "linux" and not (_sound_server(environ, root) or _capture_device(root)):
        return CaptureCommand(
            reason="this host has no microphone that ALSA, PulseAudio or PipeWire knows", remedy=_OTHER
        )
    return CaptureCommand(found)


def _sound_server(environ: Mapping[str, str], root: Path) -> bool:
    """Whether PulseAudio or PipeWire can be reached; which sources they have only they know."""
    if environ.get("PULSE_SERVER"):
        return True
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    places = ("pulse/native", "pipewire-0")
    return bool(runtime) and any((root / runtime.lstrip("/") / place).exists() for place in places)


def _capture_device(root: Path) -> bool:
    """Whether a sound card can record, by lines such as `00-00: ALC257 Analog : … : playback 1 : capture 1`."""
    try:
        return "capture" in (root / "proc/asound/pcm").read_text(errors="replace")
    except OSError:
        return False


class Silence:
    """SoX's `silence 1 0.1 3% 1 2.0 3%`, which Claude Code's `rec` may ask for: from the first sound to 2 s
    of silence after it. Sound is a loudness (RMS over 20 ms) of 3 % of the most.
    """

    WINDOW = BYTES_PER_SECOND // 50
    LEVEL = 0.03 * 32768
    STARTS, ENDS = 5, 100  # windows: 0.1 s of sound, 2 s of silence

    def __init__(self) -> None:
        self.ended = False
        self._begun = False
        self._rest = b""
        self._run: list[bytes] = []  # sound that may begin the recording, or silence that may end it

    def feed(self, data: bytes) -> bytes:
        """What of the recording so far is now known to belong to it; `ended` says that it is over."""
        data, kept = self._rest + data, []
        whole = len(data) - len(data) % self.WINDOW
        self._rest = data[whole:]
        for at in range(0, whole, self.WINDOW):
            window = data[at : at + self.WINDOW]
            if self._loud(window) == self._begun:
                kept += [*self._run, window] if self._begun else []
                self._run = []
                continue
            self._run.append(window)
            if not self._begun and len(self._run) == self.STARTS:
                kept += self._run
                self._begun, self._run = True, []
            elif self._begun and len(self._run) == self.ENDS:
                self.ended = True
                break
        return b"".join(kept)

    def _loud(self, window: bytes) -> bool:
        samples = memoryview(window).cast("h")  # all supported hosts are little-endian
        return sum(s * s for s in samples) >= self.LEVEL**2 * len(samples)

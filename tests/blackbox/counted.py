"""Run the program as it is and write how often each of its functions was called: `counted.py OUT ARGUMENT…`.

OUT becomes {"folder/module.py:function": calls}, of all threads, up to the exit or the exec.
"""

from __future__ import annotations

import atexit
import json
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = f"{ROOT}/_claude_sandbox/"
calls: Counter[str] = Counter()


def count(frame: FrameType, event: str, _argument: object) -> None:
    if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
        calls[f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_code.co_name}"] += 1


def main() -> int:
    out = Path(sys.argv.pop(1))

    def write(event: str = "os.exec", _arguments: object = ()) -> None:
        if event == "os.exec":
            out.write_text(json.dumps(calls))

    atexit.register(write)
    sys.addaudithook(write)
    sys.path.insert(0, str(ROOT))
    sys.setprofile(count)
    threading.setprofile(count)
    import claude_sandbox

    return claude_sandbox.main()


if __name__ == "__main__":
    sys.exit(main())

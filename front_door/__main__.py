"""`python -m claude_sandbox`; by this file's path an installed claude-sandbox starts itself (system/program.py)."""

import os
import sys

if not __package__:  # run by its path: import from the directory above, not from this one
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from claude_sandbox import main

if __name__ == "__main__":
    sys.exit(main())

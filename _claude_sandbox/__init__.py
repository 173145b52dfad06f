"""The rooms behind the front door `claude_sandbox`; ARCHITECTURE.md has the map."""

__version__ = "0.1.0"

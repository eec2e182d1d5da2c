"""Note the files that a program makes, and the programs that it runs, in the file `$AUDIT_FILE`.

Python imports this module at its start where its directory is in `PYTHONPATH`. Each line is JSON:
`["create", PATH]`, `["rename", OLD, NEW]`, `["link", OLD, NEW]` or `["run", ARGUMENTS]`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

_descriptor = os.open(os.environ["AUDIT_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def _note(*line: Any) -> None:
    os.write(_descriptor, json.dumps(line).encode() + b"\n")


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Note an event of the interpreter (Python's "Audit events table")."""
    is_path = bool(arguments) and isinstance(arguments[0], str | bytes)
    makes_file = event == "open" and arguments[2] & os.O_CREAT
    if is_path and (makes_file or event == "sqlite3.connect"):
        _note("create", os.fsdecode(arguments[0]))
    elif event in {"os.rename", "os.link"}:
        names = [os.fsdecode(name) for name in arguments[:2]]
        _note(event.removeprefix("os."), *names)
    elif event in {"os.exec", "os.posix_spawn"}:
        _note("run", [os.fsdecode(argument) for argument in arguments[1]])


sys.addaudithook(_hook)

"""The console on which rich prints tables and progress."""

from __future__ import annotations

import rich.console


class Console(rich.console.Console):
    """A console that raises `BrokenPipeError` where rich would end the program."""

    def on_broken_pipe(self) -> None:
        """Raise the exception that is being handled."""
        raise  # noqa: PLE0704 - rich calls this in an except clause

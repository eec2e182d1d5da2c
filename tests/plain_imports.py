"""Import libraries that are plugins of pytest as a program imports them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imported_without_rewriting() -> Iterator[None]:
    """Keep pytest from rewriting the asserts of what is imported within the context.

    It does so for all modules of a library that is also a plugin, even if the plugin is off. Those
    of schemathesis take 2.5 s of processor time, since no bytecode of them is kept.
    """
    finders = [finder for finder in sys.meta_path if type(finder).__module__.startswith("_pytest.")]
    for finder in finders:
        sys.meta_path.remove(finder)
    try:
        yield
    finally:
        sys.meta_path[:0] = finders

"""Threads share a heap, and free memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys
from ctypes import CDLL
from typing import cast

from shiftergw.plumbing.memory import release_free_memory, share_heap
from tests.patience import patient

PROGRAM = """
import platform
from pathlib import Path
from threading import Thread
from shiftergw.plumbing.memory import release_free_memory, share_heap

def resident_pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

def fill():
    # Each piece is too large for Python's own allocator and too small for a mapping of its own.
    global pieces
    pieces = [bytes(1000) for _ in range(40_000)]

assert share_heap() == (platform.libc_ver()[0] == "glibc")
pieces = []
thread = Thread(target=fill)
before = resident_pages()
thread.start()
thread.join()
full = resident_pages()
assert full - before > 9000, (before, full)
rest, pieces = pieces[::1000], []
release_free_memory()
assert resident_pages() - before < 2000, (before, full, resident_pages())
"""


def test_a_process_gives_free_memory_back() -> None:
    """What a thread has freed goes back to the system, also if the end of the heap is in use."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=patient(300))


def test_another_c_library() -> None:
    """A C library without these functions is left as it is."""
    library = cast("CDLL", object())
    assert not share_heap(library)
    assert not release_free_memory(library)

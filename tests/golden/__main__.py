"""Write the recorded data again: `python -m tests.golden`; arguments go to pytest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.golden.records import WRITE

if __name__ == "__main__":
    os.environ[WRITE] = "write"
    sys.exit(pytest.main(["-q", *(sys.argv[1:] or [str(Path(__file__).parent)])]))

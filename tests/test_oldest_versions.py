"""TLS, HTTP server and SSH client work with the oldest allowed versions of the libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oldest import OLDEST, PROJECT, pins
from tests.parts import lacking
from tests.patience import patient

TLS = ["tests/test_impostors.py", "tests/plumbing/test_tls.py"]
COMPACT = [*TLS, "-k", "to_registry or to_mongodb or to_broker or wildcards or test_tls"]
LONG = [*TLS, "tests/sources/registry", "tests/mongo/test_login.py"]
SSH = "tests/ssh/test_conch_overrides.py"
WEB = [
    "tests/web/test_http_overrides.py",
    "tests/web/test_site.py",
    "tests/web/test_pipelining.py",
    "tests/web/test_api.py",
]
RUNS_ALL = os.environ.get("SHIFTERGW_TEST_VERSIONS") == "1"
SECONDS = 1000 if RUNS_ALL else 100
MOST_SECONDS = 30 * SECONDS  # `patient` ends a hanging run before
ENVIRONMENT = Path(f"{sys.prefix}-oldest")
"""The environment that `tests/run` creates beside the one of this process."""


@pytest.fixture(scope="module")
def python() -> str:
    """Return the interpreter that has the oldest versions."""
    path = ENVIRONMENT / "bin" / "python"
    if not path.exists():
        lacking(f"{ENVIRONMENT} does not exist; `tests/run` creates it")
    return str(path)


def test_the_lower_bounds_are_installed(python: str) -> None:
    """The environment has the lower bounds of `pyproject.toml` for each library in `OLDEST`."""
    expected = pins()
    assert set(expected) == OLDEST
    program = (
        "import json, sys; from importlib.metadata import version;"
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    result = subprocess.run(
        [python, "-c", program, *expected],
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=True,
    )
    versions = json.loads(result.stdout)
    assert {name: _release(text) for name, text in versions.items()} == {
        name: _release(text) for name, text in expected.items()
    }


def _release(version: str) -> list[int]:
    """Return a version's numbers without trailing zeros."""
    numbers = [int(number) for number in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


@pytest.mark.slow
@pytest.mark.timeout(MOST_SECONDS)
def test_impostors(python: str) -> None:
    """Clients refuse the same servers as with the newest; `SHIFTERGW_TEST_VERSIONS=1` runs more."""
    _run(python, *(LONG if RUNS_ALL else COMPACT))


@pytest.mark.timeout(MOST_SECONDS)
@pytest.mark.slow
def test_the_web_site(python: str) -> None:
    """The HTTP server, which uses private members, behaves as with the newest versions."""
    _run(python, *(WEB if RUNS_ALL else [*WEB, "-k", "not any_"]))


@pytest.mark.timeout(MOST_SECONDS)
def test_the_ssh_client(python: str) -> None:
    """Conch has every private member that the SSH client uses or overrides."""
    _run(python, SSH)


def _run(python: str, *tests: str) -> None:
    """Run tests with the oldest versions; fail unless all pass and none is skipped."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env.pop("COVERAGE_PROCESS_START", None)
    result = subprocess.run(
        [python, "-m", "pytest", "-q", *tests],
        cwd=PROJECT.parent,
        env={**env, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=patient(SECONDS),
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout

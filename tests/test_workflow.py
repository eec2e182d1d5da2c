"""Tests of the workflow of continuous integration: GitHub would accept it, and its files exist.

`actionlint` finds more faults; `tests/run` runs it where it is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.parts import lacking
from tests.patience import patient

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def is_valid(workflow: Path) -> bool:
    """Return whether a file has the form of a workflow, by the schema of GitHub's workflows."""
    program = Path(sys.executable).parent / "check-jsonschema"
    if not program.exists():
        lacking("check-jsonschema is not installed; `tests/run` installs it")
    argv = [str(program), "--builtin-schema", "vendor.github-workflows", str(workflow)]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=patient(60))
    return done.returncode == 0


def test_form(tmp_path: Path) -> None:
    """The workflow has the form of a workflow; a job without a machine is invalid."""
    assert is_valid(WORKFLOW)
    invalid_workflow = tmp_path / "broken.yml"
    invalid_workflow.write_text(WORKFLOW.read_text().replace("runs-on:", "runs-somewhere:", 1))
    assert not is_valid(invalid_workflow)


def test_pythons() -> None:
    """The workflow runs the tests with the oldest Python that is allowed, and newer ones."""
    match = re.search(r"python: \[(.+)\]", WORKFLOW.read_text())
    assert match is not None
    pythons = re.findall(r"[\d.]+", match[1])
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert (f">={pythons[0]}", len(pythons)) == (oldest, 4)


def test_files() -> None:
    """Every script and test that the workflow runs exists."""
    names = set(re.findall(r"\.ci/run|tests/[\w/]+(?:\.py)?", WORKFLOW.read_text()))
    assert ".ci/run" in names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_services_name_no_host() -> None:
    """Images of services are named without a registry's host."""
    images = re.findall(r"^ +image: (\S+)$", WORKFLOW.read_text(), re.MULTILINE)
    assert images
    assert [image for image in images if "/" in image] == []

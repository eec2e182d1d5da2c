"""The Containerfile copies what the build needs, and runs the gateway as the unit does."""

from __future__ import annotations

import json
import re

from tests.packaging import CHECKOUT

TEXT = (CHECKOUT / "conf" / "packaging" / "Containerfile").read_text()


def test_every_needed_file_is_copied() -> None:
    """What a wheel and the installation read is in the build, and every copied file exists."""
    lines = re.findall(r"^COPY (?!--)(.+)$", TEXT, re.MULTILINE)
    copied_names = {name for line in lines for name in line.split()[:-1]}
    assert {name for name in copied_names if not (CHECKOUT / name).exists()} == set()
    installer = (CHECKOUT / "conf" / "packaging" / "install").read_text()
    (documents,) = re.findall(r"^cp (.+) \"\$documents/\"$", installer, re.MULTILINE)
    assert {*documents.split(), "pyproject.toml", "conf", "docs", "shiftergw", "twisted"} == (
        copied_names
    )


def test_the_container_runs_what_the_unit_runs() -> None:
    """The command is that of the unit, with its mask for new files; its user is not root."""
    unit = (CHECKOUT / "conf" / "shiftergw.service").read_text()
    (unit_command,) = re.findall(r"^ExecStart=(.+)$", unit, re.MULTILINE)
    (entry_point,) = re.findall(r"^ENTRYPOINT (.+)$", TEXT, re.MULTILINE)
    (arguments,) = re.findall(r"^CMD (.+)$", TEXT, re.MULTILINE)
    command = [*json.loads(entry_point), *json.loads(arguments)]
    (mask,) = re.findall(r"^UMask=(.+)$", unit, re.MULTILINE)
    command.remove(f"--umask={mask}")
    assert command == unit_command.replace("/opt/shiftergw/", "/usr/lib/shiftergw/").split()
    assert re.findall(r"^USER (.+)$", TEXT, re.MULTILINE) == ["shiftergw"]

"""What the machine is, and whether other programs keep it busy."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

QUIET_SHARE = 0.05
"""The share of all processors that other programs may use."""

_LOOK_SECONDS = 1.0
_VERSIONS: Mapping[str, tuple[str, ...]] = {
    "mksquashfs": ("mksquashfs", "-version"),
    "skopeo": ("skopeo", "--version"),
    "umoci": ("umoci", "--version"),
    "podman": ("podman", "--version"),
    "curl": ("curl", "--version"),
    "OpenSSH": ("ssh", "-V"),
}


def describe_machine() -> dict[str, str]:
    """Return the processor, memory, kernel and versions of tools of this machine."""
    return {
        "processors": f"{len(os.sched_getaffinity(0))} x {_cpu_model()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "system": f"{_distribution()}, Linux {platform.release()}, Python "
        f"{platform.python_version()}",
        **{name: _version(argv) for name, argv in _VERSIONS.items()},
    }


def _cpu_model() -> str:
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model[1] if model else platform.machine()


def _distribution() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return "Linux"


def _version(argv: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "not installed"
    number = re.search(r"[0-9]+(?:\.[0-9a-z]+)+", done.stdout + done.stderr)
    return number[0] if number else "unknown"


def busy_share(seconds: float = _LOOK_SECONDS) -> float:
    """Return the share of all processors that programs use during some seconds of rest here.

    Time that a hypervisor gave to other machines counts, too.
    """
    before = _processor_times()
    time.sleep(seconds)
    busy, total = (after - start for after, start in zip(_processor_times(), before, strict=True))
    return busy / total if total else 0.0


def _processor_times() -> tuple[int, int]:
    """Return the busy time and all time of the processors so far, in ticks (proc(5), `stat`)."""
    line = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, idle, iowait, *rest = (int(field) for field in line.split()[1:9])
    busy = user + nice + system + sum(rest)
    return busy, busy + idle + iowait


def quietness_warning(share: float, load: float) -> str:
    """Return a warning if the machine is busy, or an empty text.

    `share` is the share of its processors that are busy, `load` its load average of a minute.
    """
    if share <= QUIET_SHARE:
        return ""
    return (
        f"This machine is busy ({share:.0%} of its processors, load {load:.1f}): times are those of"
        " a busy machine, and the spread is wide. Stop other programs and measure again."
    )

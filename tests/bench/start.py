"""Measure how long the command line takes to start: `python -m tests.bench.start`.

The cost of a command is the CPU time of its process, user and system, as a multiple of what
`python -c pass` costs in the same round. Rounds are interleaved; the table shows the median of
the multiples, and the quartiles as the spread. `images` and `lookup` ask a small HTTP server in
this process, with a fixed credential, and with a credential of munge where munged is installed.
Only the multiples are valid on another machine. The exit code is 1 if a command exceeds its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rich.console import Console
from rich.table import Table

from tests.cli.command import ENVIRONMENT, PROGRAM
from tests.munged import MungeDaemon
from tests.server_thread import ServerThread

IMAGE_ID = "ab" * 32
ROWS = [
    {"system": "a", "itype": "docker", "tag": [f"lib/app:{number}"], "status": "READY",
     "id": IMAGE_ID, "last_pull": 1.7e9}
    for number in range(20)
]  # fmt: skip


@dataclass
class Candidate:
    """A command to measure: its arguments and environment, and the largest multiple allowed."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    bar: float | None = None
    costs: list[float] = field(default_factory=list)


class _Gateway(BaseHTTPRequestHandler):
    """Answer look-ups and lists as a gateway does."""

    def do_GET(self) -> None:
        """Answer a look-up or a list."""
        answer = {"list": ROWS} if "/list/" in self.path else {"id": IMAGE_ID}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def gateway() -> Iterator[str]:
    """Run the HTTP server; yield its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Gateway)
    with ServerThread(server):
        yield f"http://127.0.0.1:{server.server_port}"


def cpu_of(candidate: Candidate) -> float:
    """Run a command to its end and return the CPU seconds that its process took."""
    process = subprocess.Popen(
        candidate.argv,
        env={**ENVIRONMENT, **candidate.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    with process.stderr:
        errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, errors
    return usage.ru_utime + usage.ru_stime


def candidates(url: str, munged: MungeDaemon | None) -> list[Candidate]:
    """Return the commands to measure, the baseline first."""
    env = {"SHIFTERGW_GATEWAY": url, "SHIFTERGW_SYSTEM": "a"}
    with_credential = {**env, "SHIFTERGW_CREDENTIAL": "good:ann:ann"}
    commands = [
        Candidate("python -c pass", [sys.executable, "-c", "pass"]),
        Candidate("python -c 'import click'", [sys.executable, "-c", "import click"]),
        Candidate("shiftergw --help", [*PROGRAM, "--help"], bar=10),
        Candidate("images", [*PROGRAM, "images"], with_credential, 15),
        Candidate("lookup", [*PROGRAM, "lookup", "lib/app:1"], with_credential, 15),
    ]
    if munged is not None:
        with_munge = {**env, "SHIFTERGW_MUNGE_SOCKET": str(munged.socket)}
        commands += [
            Candidate("images (munge)", [*PROGRAM, "images"], with_munge, 15),
            Candidate("lookup (munge)", [*PROGRAM, "lookup", "lib/app:1"], with_munge, 15),
        ]
    return commands


def multiples(commands: Sequence[Candidate]) -> dict[str, list[float]]:
    """Return the costs of each command as multiples of the first command's, round by round."""
    baseline = commands[0].costs
    return {
        command.name: [cost / base for cost, base in zip(command.costs, baseline, strict=True)]
        for command in commands
    }


def main() -> int:
    """Measure, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21, help="rounds (default: %(default)s)")
    rounds = parser.parse_args().rounds
    with ExitStack() as stack:
        url = stack.enter_context(gateway())
        program = shutil.which("munged", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        munged = stack.enter_context(MungeDaemon()) if program else None
        commands = candidates(url, munged)
        for command in commands:
            cpu_of(command)  # compiles the modules
        for _ in range(rounds):
            for command in commands:
                command.costs.append(cpu_of(command))
    table = Table("Command", "CPU, ms", "x pass", "quartiles", "bar", box=None)
    is_missed = False
    for command, ratios in zip(commands, multiples(commands).values(), strict=True):
        low, middle, high = statistics.quantiles(ratios, n=4)
        bar = ""
        if command.bar is not None:
            bar = f"{command.bar:g} {'met' if middle <= command.bar else 'MISSED'}"
            is_missed |= middle > command.bar
        cost = 1000 * statistics.median(command.costs)
        table.add_row(command.name, f"{cost:.0f}", f"{middle:.1f}", f"{low:.1f}-{high:.1f}", bar)
    Console().print(table)
    return int(is_missed)


if __name__ == "__main__":
    sys.exit(main())

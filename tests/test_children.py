"""Tests that no process outlives a run of the tests, with each kind of server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import children, reaper
from tests.running_service import until

ROOT = Path(__file__).parent.parent
END_SECONDS = 20.0

HEAD = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from tests import children, reaper
root = Path(sys.argv[1])
"""
TAIL = """
print("ready", flush=True)
time.sleep(1000)
"""

SERVERS = {
    "munged": "from tests.munged import MungeDaemon; running = MungeDaemon().__enter__()",
    "sshd": """
from tests.sshd import Sshd
running = Sshd().__enter__()
ssh = ["ssh", "-F", "none", "-i", running.key, "-p", str(running.port), "-o", "BatchMode=yes"]
ssh += ["-o", f"UserKnownHostsFile={running.known_hosts}", f"{running.user}@127.0.0.1"]
session = subprocess.Popen([*ssh, "echo here; sleep 1000"], stdout=subprocess.PIPE)
assert session.stdout.readline() == b"here\\n"
""",
    "registry": """
from tests.registries import DockerRegistry
running = DockerRegistry(root / "registry").__enter__()
""",
    "mongod": """
from tests.mongod import Mongod
running = Mongod(root / "mongod", "--standalone").__enter__()
running.freeze()
""",
    "rabbitmq": "from tests.rabbitmq import RabbitMQ; running = RabbitMQ().__enter__()",
    "service": """
from tests.running_service import Service, until
location = {"remotetype": "dockerv2", "url": "http://127.0.0.1:1"}
running = Service(root, {"registry": location}).__enter__()
until(running.workers, 60, "the first worker")
""",
    "agent": """
from tests.ssh.test_keys import agent
running = agent()
running.__enter__()
""",
    # A thread that ends starts it, and it leaves its parent.
    "daemon": """
code = "import os, signal, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0)"
code += f"; open({str(root / 'here')!r}, 'w'); time.sleep(1000)"
starting = threading.Thread(target=lambda: children.start([sys.executable, "-c", code]).wait())
starting.start()
starting.join()
while not (root / "here").exists():
    time.sleep(0.01)
""",
    # It has no mark, so that only its parent shows to which run it belongs.
    "other environment": """
running = children.start(["sh", "-c", "env -i sleep 1000; true"])
while len(reaper.descendants([reaper.process(running.pid)])) < 2:
    time.sleep(0.01)
""",
}


def environment() -> dict[str, str]:
    """Return the environment of a separate run."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def begin_run(code: str, root: Path) -> tuple[subprocess.Popen[bytes], set[reaper.Process]]:
    """Begin a run that executes `code`; return it, and the processes that it has started."""
    argv = [sys.executable, "-c", f"{HEAD}children.guard()\n{code}\n{TAIL}", str(root)]
    run = subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    mark = reaper.mark_of(run.pid)
    below = reaper.descendants([reaper.process(run.pid)]) - {reaper.process(run.pid)}
    return run, below | reaper.survivors_of(mark, ())


@pytest.fixture
def runs() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Return a list for runs, which are killed at the end of the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for run in processes:
        run.kill()
        run.wait()
        assert run.stdout is not None
        run.stdout.close()


@pytest.mark.parametrize("kind", SERVERS)
def test_a_run_is_killed(kind: str, tmp_path: Path, runs: list[subprocess.Popen[bytes]]) -> None:
    """The processes of a killed run end within seconds."""
    run, processes = begin_run(SERVERS[kind], tmp_path)
    runs.append(run)
    alive = [process for process in processes if process.is_alive()]
    assert len(alive) >= (2 if kind in {"sshd", "rabbitmq", "service"} else 1)
    run.kill()
    until(lambda: not any(process.is_alive() for process in processes), END_SECONDS, "their end")
    assert reaper.survivors_of(reaper.mark_of(run.pid), processes) == set()


@pytest.mark.parametrize("end", ["os._exit(1)", "sys.exit(0)", "raise KeyboardInterrupt"])
def test_a_run_ends(end: str, tmp_path: Path) -> None:
    """Processes that a run leaves are killed, however the run ends."""
    code = f'{HEAD}print(children.start(["sleep", "1000"]).pid, flush=True)\n{end}'
    argv = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(argv, env=environment(), capture_output=True, check=False)
    child = reaper.process(int(done.stdout))
    until(lambda: not child.is_alive(), END_SECONDS, "its end")


def test_the_reaper_is_killed_too(tmp_path: Path, runs: list[subprocess.Popen[bytes]]) -> None:
    """The next run kills the processes of that run at its begin, but not those of other runs."""
    run, processes = begin_run('children.start(["sleep", "1000"])', tmp_path)
    second_run, second_processes = begin_run('children.start(["sleep", "1000"])', tmp_path)
    runs += [run, second_run]
    (child,) = processes
    for pid in _children_of(run.pid) - {child.pid}:
        os.kill(pid, signal.SIGKILL)  # the reaper
    run.kill()
    run.wait()
    reaper.sweep()
    assert not child.is_alive()
    assert all(process.is_alive() for process in second_processes)


def _children_of(pid: int) -> set[int]:
    """Return the processes that a process has started."""
    return {int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def test_a_process_by_its_id() -> None:
    """A process is identified by its start, too, since its id may be reused."""
    child = subprocess.Popen(["sleep", "1000"])
    first_process = reaper.process(child.pid)
    assert first_process.is_alive()
    assert not reaper.Process(child.pid, "1").is_alive()
    reaper.Process(child.pid, "1").kill()
    assert child.poll() is None
    first_process.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not first_process.is_alive(), "it has ended, and its parent has not waited for it"
    child.wait()
    assert not reaper.process(child.pid).is_alive()


def test_runs_of_other_namespaces() -> None:
    """A mark of another container names no process of this one."""
    mark = reaper.mark_of(os.getpid())
    assert reaper.runner_of(mark) == reaper.process(os.getpid())
    assert reaper.runner_of(mark.replace("pid:[", "pid:[1")) is None
    assert reaper.runner_of("nonsense") is None


def test_programs_of_tests_are_marked() -> None:
    """This run is guarded, and so is a program with an environment of its own."""
    assert os.environ[reaper.VARIABLE] == reaper.mark_of(os.getpid())
    argv = [sys.executable, "-c", "import os; print(os.environ['TESTS_RUN'])"]
    child = children.start(argv, env={}, stdout=subprocess.PIPE)
    assert child.communicate()[0].decode().strip() == reaper.mark_of(os.getpid())

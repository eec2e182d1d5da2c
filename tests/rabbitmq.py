"""Run a real RabbitMQ server for tests, with its own node name, ports and directories."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from twisted.internet.threads import deferToThread

from tests import children
from tests.parts import free_port, lacking, listens, need, wait_for_port
from tests.patience import patient

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Debian's server, without the wrapper script that changes the user and the directory."""

START_SECONDS = 90.0
STOP_SECONDS = 30.0


class RabbitMQ:
    """A broker; `with RabbitMQ() as broker` runs it in a temporary directory."""

    def __init__(self, user: str = "sites", password: str = "") -> None:
        """Accept only this user; the broker starts when the context is entered."""
        self.user = user
        self.password = password or os.urandom(12).hex()
        self.port = free_port()
        self._node = f"test-{self.port}@localhost"
        self._ports = [free_port(), free_port()]
        self._directory = TemporaryDirectory(prefix="rabbitmq-")
        self.root = Path(self._directory.name)
        self._name_server: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the URL for clients."""
        return f"amqp://{self.user}:{self.password}@127.0.0.1:{self.port}//"

    @staticmethod
    def password_of(url: str) -> str:
        """Return the password in a URL of a broker."""
        return url.partition("//")[2].partition("@")[0].partition(":")[2]

    def listen_with_tls(self, authority: Path, pem: Path, *, ask: bool = False) -> str:
        """Listen on another port of 127.0.0.1 and 127.0.0.2 with TLS; return its URL for clients.

        With `ask` the broker requires a certificate of its clients. The port is open until the
        broker ends.
        """
        port = free_port()
        verify = "verify_peer" if ask else "verify_none"
        options = (
            f'[{{cacertfile, "{authority}"}}, {{certfile, "{pem}"}}, {{keyfile, "{pem}"}}, '
            f"{{verify, {verify}}}, {{fail_if_no_peer_cert, {str(ask).lower()}}}]"
        )
        self.evaluate("application:ensure_all_started(ssl)")
        for address in ("127.0.0.1", "127.0.0.2"):
            listener = f'{{"{address}", {port}}}'
            self.evaluate(f"rabbit_networking:start_ssl_listener({listener}, {options}, 1)")
        return f"amqps://{self.user}:{self.password}@127.0.0.1:{port}//"

    def evaluate(self, expression: str) -> str:
        """Return the value of an Erlang expression in the server, as text.

        The functions that `rabbitmqctl` calls there take milliseconds. The program itself takes
        half a second of processor time to start.
        """
        done = subprocess.run(
            [need("erl_call"), "-r", "-n", self._node, "-timeout", "60", "-e"],
            input=f"{expression}.\n",
            env=self._env(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.startswith("{ok, "), done.stdout + done.stderr
        return done.stdout.removeprefix("{ok, ").removesuffix("}")

    def close_connections(self, reason: str) -> None:
        """Close all connections, as an administrator may."""
        self.evaluate(f'rabbit_networking:close_all_connections("{reason}")')

    def set_memory_limit(self, share: float) -> None:
        """Raise the memory alarm if the server uses more than a share of the machine's memory."""
        self.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({share:f})")

    def set_permissions(self, user: str, names: str, host: str = "/") -> None:
        """Let a user configure, write and read what matches a regular expression, on a host."""
        patterns = f'<<"{names}">>, <<"{names}">>, <<"{names}">>'
        self.evaluate(
            "rabbit_auth_backend_internal:set_permissions("
            f'<<"{user}">>, <<"{host}">>, {patterns}, <<"tests">>)'
        )

    def ctl(self, *arguments: str) -> bytes:
        """Return the output of `rabbitmqctl`, which takes a second or two."""
        argv = [str(SERVER.with_name("rabbitmqctl")), "-q", "-n", self._node]
        result = subprocess.run(
            [*argv, *arguments], env=self._env(), cwd=self.root, capture_output=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    async def control(self, *arguments: str) -> bytes:
        """Run `rabbitmqctl` in a thread and return its output.

        On a busy machine it may take longer than `SILENT_SECONDS`. A queue in the test's own
        reactor must receive the statuses of worker machines meanwhile.
        """
        return await deferToThread(self.ctl, *arguments)

    def __enter__(self) -> Self:
        """Start the name server and the broker."""
        if not SERVER.exists():
            lacking("rabbitmq-server is not installed; `tests/run` installs it")
        (self.root / "plugins").write_text("[].\n")
        # In the foreground: a name server that Erlang starts would survive the test.
        argv = [need("epmd"), "-port", str(self._ports[0]), "-address", "127.0.0.1"]
        self._name_server = children.start(
            argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for_port(self._ports[0])
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the broker and remove its directory."""
        try:
            self.kill()
            if self._name_server is not None:
                self._name_server.kill()
                self._name_server.wait(patient(STOP_SECONDS))
        finally:
            self._directory.cleanup()

    def start(self) -> None:
        """Start the server with the data on its disk; wait until all its ports are open."""
        (self.root / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{self.port}\n"
            f"default_user = {self.user}\ndefault_pass = {self.password}\n"
            "log.console = true\nlog.console.level = info\nlog.file = false\n"
            "disk_free_limit.absolute = 50MB\n"
        )
        with (self.root / "output").open("ab") as output:
            begin = output.tell()
            self._server = children.start(
                [SERVER],
                env=self._env(),
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + patient(START_SECONDS)
        while b"Server startup complete" not in (self.root / "output").read_bytes()[begin:]:
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.root / "output").read_text()[-4000:])
            time.sleep(0.05)

    def _env(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOME": str(self.root),
            "ERL_EPMD_PORT": str(self._ports[0]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self._ports[1]),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_MNESIA_BASE": str(self.root / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.root / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.root / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": str(self.root / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.root / "plugins"),
            # The start script replaces itself with Erlang, so that our child is the server.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_PID_FILE": str(self.root / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +A 8",
        }

    def kill(self) -> None:
        """Kill the server at once, even if it is suspended."""
        if self._server is not None:
            server, self._server = self._server, None
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait(patient(STOP_SECONDS))
            # Helper programs of Erlang inherit the ports and end a little later.
            while listens(self.port):
                time.sleep(0.02)

    @contextmanager
    def suspension(self) -> Iterator[None]:
        """Suspend the server for a while; the kernel still accepts connections to it."""
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._server.pid, signal.SIGCONT)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Kill the server for a while; it restarts with the data on its disk."""
        self.kill()
        try:
            yield
        finally:
            self.start()

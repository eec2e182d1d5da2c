"""A real RabbitMQ server for tests, with a node, ports and directories of its own."""

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
"""Debian's, without the script in front of it that changes the user and the directory."""

START_SECONDS = 90.0
STOP_SECONDS = 30.0


class RabbitMQ:
    """A broker; `with RabbitMQ() as broker` runs it in a directory that goes away with it."""

    def __init__(self, user: str = "sites", password: str = "") -> None:
        """Let in this user alone; nothing runs until the context is entered."""
        self.user = user
        self.password = password or os.urandom(12).hex()
        self.port = free_port()
        self.tls_port = free_port()
        self.settings = ""
        """Lines of its configuration besides ours, from its next start on."""
        self._ports = [free_port(), free_port()]
        self._directory = TemporaryDirectory(prefix="rabbitmq-")
        self.root = Path(self._directory.name)
        self._names: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return how clients reach it."""
        return f"amqp://{self.user}:{self.password}@127.0.0.1:{self.port}//"

    @property
    def tls_url(self) -> str:
        """Return how clients reach it by TLS, if its settings are `with_tls`."""
        return f"amqps://{self.user}:{self.password}@127.0.0.1:{self.tls_port}//"

    @staticmethod
    def password_of(url: str) -> str:
        """Return the password in such a URL."""
        return url.partition("//")[2].partition("@")[0].partition(":")[2]

    def with_tls(self, authority: Path, pem: Path, ask: bool = False) -> str:
        """Return settings for TLS, on 127.0.0.1 and 127.0.0.2; it may `ask` for certificates."""
        return (
            f"listeners.ssl.one = 127.0.0.1:{self.tls_port}\n"
            f"listeners.ssl.two = 127.0.0.2:{self.tls_port}\n"
            f"ssl_options.cacertfile = {authority}\n"
            f"ssl_options.certfile = {pem}\nssl_options.keyfile = {pem}\n"
            f"ssl_options.verify = {'verify_peer' if ask else 'verify_none'}\n"
            f"ssl_options.fail_if_no_peer_cert = {str(ask).lower()}\n"
        )

    def ctl(self, *arguments: str) -> bytes:
        """Return what `rabbitmqctl` prints; that takes a second or two."""
        argv = [str(SERVER.with_name("rabbitmqctl")), "-q", "-n", f"test-{self.port}@localhost"]
        ran = subprocess.run(
            [*argv, *arguments], env=self._env(), cwd=self.root, capture_output=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    async def control(self, *arguments: str) -> bytes:
        """Run `rabbitmqctl` in a thread and return what it prints.

        On a busy machine it takes longer than a gateway waits for a sign of its worker machines: a
        gateway that runs in the test's own reactor must go on hearing them meanwhile.
        """
        return await deferToThread(self.ctl, *arguments)

    def __enter__(self) -> Self:
        """Start it."""
        if not SERVER.exists():
            lacking("rabbitmq-server is not installed; `tests/run` installs it")
        (self.root / "plugins").write_text("[].\n")
        # A name server of our own, in the foreground: the one that Erlang starts would stay.
        argv = [need("epmd"), "-port", str(self._ports[0]), "-address", "127.0.0.1"]
        self._names = children.start(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for_port(self._ports[0])
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it, and remove what it had."""
        try:
            self.kill()
            if self._names is not None:
                self._names.kill()
                self._names.wait(patient(STOP_SECONDS))
        finally:
            self._directory.cleanup()

    def start(self) -> None:
        """Start the server, with what it had on its disk, and wait until it takes connections.

        On all its ports: it opens one after the other.
        """
        (self.root / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{self.port}\n"
            f"default_user = {self.user}\ndefault_pass = {self.password}\n"
            "log.console = true\nlog.console.level = info\nlog.file = false\n"
            f"disk_free_limit.absolute = 50MB\n{self.settings}"
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
            "RABBITMQ_NODENAME": f"test-{self.port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(self.root / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.root / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.root / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": str(self.root / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.root / "plugins"),
            # Erlang takes the script's place: what we start is what we stop.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_PID_FILE": str(self.root / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +A 8",
        }

    def kill(self) -> None:
        """Kill the server at once, also a suspended one."""
        if self._server is not None:
            server, self._server = self._server, None
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait(patient(STOP_SECONDS))
            # Small programs that Erlang has started hold what they inherited a little longer.
            while listens(self.port):
                time.sleep(0.02)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Keep the server from answering; the kernel still takes connections for it."""
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._server.pid, signal.SIGCONT)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Have no server for a while; it comes back with what it had on its disk."""
        self.kill()
        try:
            yield
        finally:
            self.start()

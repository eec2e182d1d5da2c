"""The options and the service of `twistd shiftergw` and `twist shiftergw`."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure

from shiftergw import __version__
from shiftergw.app.gateway import gateway_service
from shiftergw.app.log import LogOptions, start_logging
from shiftergw.config import Config, LoadedConfig, file_of_environment
from shiftergw.errors import ConfigurationError, GatewayError
from shiftergw.plumbing.listening import remedy
from shiftergw.plumbing.reactor import with_threads

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

_log = Logger()


class Options(usage.Options):
    """The command line of the service."""

    synopsis = "[--config FILE]"
    longdesc = "The image gateway. See the README for its configuration."
    optParameters = [  # noqa: N815, RUF012 - the name and form that usage.Options reads
        ["config", "c", None, "imagemanager.json (else $GWCONFIG, else the one in $CONFIG_PATH)"],
    ]

    loaded_config: LoadedConfig
    file: Path

    def postOptions(self) -> None:
        """Read the configuration; exit with a clear text if it has an error."""
        try:
            self.file = Path(self["config"] or file_of_environment(os.environ)).absolute()
            self.loaded_config = Config.load(self.file, os.environ)
        except ConfigurationError as error:
            # A UsageError would print the options first, which are not at fault.
            sys.exit(f"shiftergw cannot start: {error}")


class GatewayService(Service):
    """The gateway's parts as one service; a failed start ends the process with exit code 1."""

    def __init__(
        self, parts: Service, options: Options, log_options: LogOptions, reactor: Reactor
    ) -> None:
        """Wrap `parts`."""
        self._log_options = log_options
        self._parts = parts
        self._options = options
        self._reactor = reactor

    def startService(self) -> None:
        """Start the parts in order once the reactor runs; the last of them listen.

        Not earlier, because `twist` starts the service before the log that must be filtered.
        """
        super().startService()
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        gc.freeze()  # imported modules live as long as the process
        start_logging(self._log_options)
        self._log_options.handle_signal(with_threads(self._reactor).callFromThread)
        self._handle_hangup()
        for warning in self._options.loaded_config.warnings:
            _log.warn("configuration: {warning}", warning=warning)
        starting: Deferred[None] = self._parts.startService()
        starting.addCallbacks(self._log_start, self._give_up)

    def _handle_hangup(self) -> None:
        """Stop in order when the terminal is closed, unless `nohup` made the process ignore SIGHUP.

        The reactor handles SIGINT and SIGTERM only; by default, SIGHUP ends the process at once.
        """
        threads = with_threads(self._reactor)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, lambda *_: threads.callFromThread(self._stop_after_hangup))

    def _stop_after_hangup(self) -> None:
        _log.info("received SIGHUP, shutting down")
        with suppress(ReactorNotRunning):  # it is stopping already
            self._reactor.stop()

    def _log_start(self, _: None) -> None:
        _log.info(
            "shiftergw {version} with {file}: listening on {where}",
            version=__version__,
            file=str(self._options.file),
            where=", ".join(self._options.loaded_config.config.listen),
        )

    def _give_up(self, failure: Failure) -> None:
        """End the process: a gateway that does not listen must not seem to run."""
        if failure.check(CancelledError):
            return  # the process was stopped during the start
        error = failure.value
        if isinstance(error, CannotListenError):
            cause = f"{str(error).rstrip('.')}."
            failure = Failure(ConfigurationError(cause, remedy=remedy(error)))
        if failure.check(GatewayError):
            _log.critical("cannot start: {error}", error=failure.value)
            sys.stderr.write(f"shiftergw cannot start: {failure.value}\n")
        else:
            _log.failure("cannot start", failure)
            sys.stderr.write(f"shiftergw cannot start: {failure.getErrorMessage()}\n")
        # twistd cannot return an exit code once the reactor runs; this handler runs last.
        atexit.register(os._exit, 1)
        with suppress(ReactorNotRunning):  # it is stopping already
            self._reactor.stop()

    def stopService(self) -> Deferred[None]:
        """Stop the parts in reverse order."""
        super().stopService()
        stopping: Deferred[None] = self._parts.stopService()
        return stopping


def makeService(options: Options, reactor: Reactor | None = None) -> Service:
    """Return the service, without opening anything, because twistd forks after this.

    Exits if wiring the parts shows that the configuration is wrong.
    """
    if reactor is None:
        # Importing it installs it.
        from twisted.internet import reactor as installed_reactor  # noqa: PLC0415

        reactor = installed_reactor
    config = options.loaded_config.config
    log_options = LogOptions(config.log_level, config.log_format)
    try:
        parts = gateway_service(reactor, config, options.file, log_options)
    except ConfigurationError as error:
        sys.exit(f"shiftergw cannot start: {error}")
    return GatewayService(parts, options, log_options, reactor)

"""The application that `celery -A shiftergw.work.celery worker -Q SYSTEM,...` runs.

`celery -A PACKAGE` first looks for an attribute `app` or `celery` of the package, and passes over
modules; then it imports `PACKAGE.celery`, which is this module. So `__init__.py` of this package
must define neither name: `shiftergw.work.celery.app` is a module.

`$GWCONFIG` or `$CONFIG_PATH` names the configuration file, which is the same as the gateway's.
"""

from __future__ import annotations

import os
import sys

from celery import Celery

from shiftergw.config import Config, file_of_environment
from shiftergw.errors import ConfigurationError
from shiftergw.work.celery.worker import log_json, make_worker


def _make_app() -> Celery:
    """Return the application of this machine's configuration.

    Exits with a message if the configuration is invalid or names no broker.
    """
    try:
        file = file_of_environment(os.environ).absolute()
        config = Config.load(file, os.environ).config
        config.check_supported()
    except ConfigurationError as error:
        sys.exit(f"shiftergw worker cannot start: {error}")
    if config.broker_url is None:
        sys.exit(f"shiftergw worker cannot start: {file} has no BrokerURL")
    argv = [sys.executable, "-m", "shiftergw.runner", "--with-caller", "--config", str(file)]
    if config.log_format == "json":
        log_json()
    return make_worker(config.broker_url, config.worker_threads, argv, config.systems)


app = _make_app()

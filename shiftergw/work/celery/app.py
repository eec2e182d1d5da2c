"""What the gateway and the worker machines share: message names, and the settings of Celery."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from celery import Celery
from kombu.entity import Exchange

from shiftergw.config.broker import BROKER_FILES
from shiftergw.work.celery import tls as celery_tls  # noqa: F401 - makes amqps: verify the broker
from shiftergw.work.celery.worker_registry import STATUS_SECONDS

TASK = "shiftergw.convert"
"""The name of the only task; its only argument is the key of a record."""

STATUS = "worker-shiftergw"
"""The type of the Celery event by which a worker machine publishes its status."""

CANCEL = Exchange("shiftergw.cancel", type="fanout", durable=True)
"""Carries orders to stop the jobs on a record, `{"key": KEY}`, to every worker machine."""

CONNECT_SECONDS = 5.0
"""Time limit for connecting to the broker, with its log-in."""

SOCKET_SECONDS = 20.0
"""Time limit for one answer or one write on an open connection."""

HEARTBEAT_SECONDS = 10.0
"""A broker from which nothing arrives for twice this time counts as unavailable."""

_KEY = re.compile(r"[0-9a-f]{24}")


def is_key(value: object) -> bool:
    """Return whether a value has the form of a record's key; no message carries anything else."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def make_app(broker_url: str, slots: int | None = None) -> Celery:
    """Return Celery with all settings, without opening a connection.

    `slots` are those of a worker machine. Messages are JSON, and results are not stored. With
    `amqps:`, the broker's certificate must list the host of the URL, and is verified against the
    authorities in `cacertfile` of the URL, in `$SSL_CERT_FILE`, or of the machine.
    """
    app = Celery("shiftergw", set_as_current=False)
    url, _, options = broker_url.partition("?")
    if url.startswith("amqps:"):
        app.conf.update(broker_use_ssl=_tls_options(url, options))
    app.conf.update(
        broker_url=url,
        broker_connection_timeout=CONNECT_SECONDS,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        broker_heartbeat=HEARTBEAT_SECONDS,
        broker_transport_options={
            "read_timeout": SOCKET_SECONDS,
            "write_timeout": SOCKET_SECONDS,
        },
        accept_content=["json"],
        task_serializer="json",
        event_serializer="json",
        task_ignore_result=True,
        task_send_sent_event=False,
        event_queue_ttl=STATUS_SECONDS * 3,
        # A message is acknowledged when its job begins. The store recovers a job that is lost, and
        # a conversion of hours would exceed the broker's time limit for acknowledgements.
        task_acks_late=False,
        worker_consumer="shiftergw.work.celery.consumer:MachineConsumer",
        # Remote control would let anybody who can write to the broker stop machines.
        worker_enable_remote_control=False,
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_detect_quorum_queues=False,
        worker_disable_rate_limits=True,
        worker_concurrency=slots,
        worker_proc_alive_timeout=60.0,
    )
    return app


def connection_options(name: str) -> dict[str, Any]:
    """Return the transport options that show a connection's name to the broker's admins."""
    return {"client_properties": {"connection_name": f"shiftergw {name}"}}


def connect_once(connection: Any) -> None:
    """Open a connection in a single attempt; raise the error of the driver if it fails."""
    connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)


def ignore_message(message: Any, error: Exception) -> None:
    """Ignore a message that cannot be decoded: anybody may send one to a queue of events."""


def _tls_options(url: str, options: str) -> dict[str, Any]:
    """Return the host that the broker's certificate must list, and the files that the URL names.

    The host is passed explicitly because kombu would verify `127.0.0.1` for a `localhost` URL.
    """
    files = {BROKER_FILES[name]: path for name, path in parse_qsl(options) if name in BROKER_FILES}
    return {"server_hostname": urlsplit(url).hostname or "localhost", **files}

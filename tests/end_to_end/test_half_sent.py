"""A gateway with few descriptors, and a client that sends many incomplete requests."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

from tests.patience import patient
from tests.running_service import ALICE, SYSTEM, Service

FEW_DESCRIPTORS = ("sh", "-c", 'ulimit -n 160; exec "$@"', "sh")
LOCATIONS = {"registry.example.com": {"remotetype": "dockerv2", "url": "http://127.0.0.1:9"}}


def test_incomplete_requests_block_no_client(tmp_path: Path) -> None:
    """With 160 descriptors and 200 incomplete requests, other clients get their answers."""
    with Service(tmp_path, LOCATIONS, through=FEW_DESCRIPTORS) as service, ExitStack() as stack:
        for _ in range(200):
            connection = socket.create_connection(("127.0.0.1", service.port), timeout=patient(30))
            stack.enter_context(connection)
            connection.sendall(b"GET /api/list/mycluster/ HTTP/1.1\r\nauthentic")
        for _ in range(20):
            status, answer = service.get(f"/api/list/{SYSTEM}/", ALICE)
            assert (status, answer) == (200, {"list": []})
        assert service.get("/readyz")[0] == 200
    log = service.log.read_text()
    assert "many connections at once" in log
    assert "EMFILE" not in log
    assert "Too many open files" not in log

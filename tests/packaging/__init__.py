"""Tests of what packagers build: source distribution, wheel, and packages of distributions."""

from pathlib import Path

CHECKOUT = Path(__file__).parent.parent.parent

FOR_OPERATORS = (
    "local.json",
    "remote.json",
    "workers.json",
    "shiftergw.service",
    "shiftergw-worker.service",
    "monitoring/grafana-dashboard.json",
    "monitoring/prometheus-alerts.yml",
)
"""Files of `conf/` that a wheel installs into `share/shiftergw`."""

"""The metrics of the program: their names, labels and buckets; docs/operating.md describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OTHER_LABEL = "other"
"""The value of each label of a series beyond the limit on series."""

_MOMENTS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0)
_STAGES = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
_MEMORY = tuple(float(2**power) for power in range(26, 35))


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric, whose name ends in its unit, and in `_total` if it is a counter.

    `buckets` are the upper limits of a histogram's buckets, in the unit of the metric.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


REQUEST_SECONDS = Metric(
    "histogram",
    "shiftergw_request_seconds",
    "Time from a complete request to its answer.",
    ("route", "status"),
    _MOMENTS,
)
STORE_SECONDS = Metric(
    "histogram",
    "shiftergw_store_seconds",
    "Time of a call to the database, by the gateway.",
    ("call",),
    _MOMENTS,
)
STORE_ERRORS = Metric(
    "counter",
    "shiftergw_store_unavailable_total",
    "Calls for which the database was not available, by the gateway.",
    ("call",),
)
REACTOR_LAG = Metric(
    "histogram",
    "shiftergw_reactor_lag_seconds",
    "Delay of a call that the gateway's process makes every second.",
    (),
    _MOMENTS,
)
WORK = Metric("gauge", "shiftergw_work", "Pulls and removals in flight.", ("system", "state"))
WORK_KNOWN = Metric(
    "gauge", "shiftergw_work_known", "1 if the database has answered what work there is, else 0."
)
MACHINES = Metric("gauge", "shiftergw_worker_machines", "Machines with workers.")
SLOTS = Metric("gauge", "shiftergw_worker_slots", "Jobs that all workers can do at a time.")
JOBS = Metric("gauge", "shiftergw_worker_jobs", "Jobs that workers do now.")
TROUBLE = Metric(
    "gauge",
    "shiftergw_worker_trouble",
    "1 if no worker takes jobs of a system, else 0.",
    ("system",),
)
WORKER_ENDS = Metric(
    "counter",
    "shiftergw_worker_losses_total",
    "Jobs whose worker ended without a result.",
    ("died",),
)

ATTEMPTS = Metric(
    "counter",
    "shiftergw_attempts_total",
    "Attempts at a pull or a removal that have ended, by outcome and cause.",
    ("system", "kind", "outcome", "cause"),
)
STAGE_SECONDS = Metric(
    "histogram",
    "shiftergw_stage_seconds",
    "Time of a stage in one attempt.",
    ("system", "stage"),
    _STAGES,
)
STEP_SECONDS = Metric(
    "counter", "shiftergw_step_seconds_total", "Time of the steps of a build.", ("step",)
)
WAIT_SECONDS = Metric(
    "histogram",
    "shiftergw_wait_seconds",
    "Time from a request until the start of the attempt that delivered the image.",
    ("system",),
    _STAGES,
)
LAYER_BYTES = Metric(
    "counter",
    "shiftergw_layer_bytes_total",
    "Bytes of layers that pulls needed: downloaded, or there already (layers and packs).",
    ("source",),
)
IMAGE_BYTES = Metric(
    "counter", "shiftergw_image_bytes_total", "Bytes of images that became READY.", ("system",)
)
SENT_BYTES = Metric(
    "counter", "shiftergw_sent_bytes_total", "Bytes of images sent to a system.", ("system",)
)
EVICTIONS = Metric(
    "counter",
    "shiftergw_evictions_total",
    "Layers, packs and converted images that were removed to make room.",
    ("kind",),
)
EVICTED_BYTES = Metric(
    "counter", "shiftergw_evicted_bytes_total", "Bytes that were removed to make room.", ("kind",)
)
REQUESTS_LEFT = Metric(
    "gauge",
    "shiftergw_registry_requests_left",
    "Requests without a login that a registry still allows, as it last told.",
    ("registry",),
)
WORKER_MEMORY = Metric(
    "histogram",
    "shiftergw_worker_peak_memory_bytes",
    "Peak memory of a worker process at the end of a job.",
    (),
    _MEMORY,
)

METRICS = {
    metric.name: metric
    for metric in (
        REQUEST_SECONDS,
        STORE_SECONDS,
        STORE_ERRORS,
        REACTOR_LAG,
        WORK,
        WORK_KNOWN,
        MACHINES,
        SLOTS,
        JOBS,
        TROUBLE,
        WORKER_ENDS,
        ATTEMPTS,
        STAGE_SECONDS,
        STEP_SECONDS,
        WAIT_SECONDS,
        LAYER_BYTES,
        IMAGE_BYTES,
        SENT_BYTES,
        EVICTIONS,
        EVICTED_BYTES,
        REQUESTS_LEFT,
        WORKER_MEMORY,
    )
}
"""All metrics by name."""

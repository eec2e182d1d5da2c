"""Tests of values that old configurations write in another JSON type."""

from __future__ import annotations

from typing import Any

import pytest

from tests.configurations import load_config


@pytest.mark.parametrize(
    ("path", "value", "attribute", "expected"),
    [
        ("LogLevel", "DEBUG", "log_level", "debug"),
        ("LogLevel", "Info", "log_level", "info"),
        ("LogLevel", "warning", "log_level", "warn"),
        ("LogLevel", "WARN", "log_level", "warn"),
        ("LogLevel", "FATAL", "log_level", "critical"),
        ("LogLevel", "NOTSET", "log_level", "debug"),
        ("WorkerThreads", "8", "worker_threads", 8),
        ("WorkerThreads", 8.0, "worker_threads", 8),
        ("Metrics", "true", "metrics", True),
        ("Metrics", "False", "metrics", False),
        ("Metrics", 1, "metrics", True),
        ("Metrics", "0", "metrics", False),
        ("ScheduledExpiry", "yes", "scheduled_expiry", True),
        ("PullUpdateTimeout", "300", "pull_update_timeout", 300),
        ("PullUpdateTimeout", "0.5", "pull_update_timeout", 0.5),
        ("FailureHold", "20", "failure_hold", 20),
        ("DefaultImageFormat", None, "default_image_format", "squashfs"),
    ],
)
def test_values_of_other_types_are_converted(
    path: str, value: Any, attribute: str, expected: Any
) -> None:
    """A value of another type is converted to that of its key, and a warning names the key."""
    result = load_config({path: value})
    converted_value = getattr(result.config, attribute)
    assert converted_value == expected
    assert (type(converted_value) is bool) == (type(expected) is bool)
    assert [warning.partition(":")[0] for warning in result.warnings] == [path]


def test_values_within_sections_are_converted() -> None:
    """Values in sections, and in the named objects of tables, are converted as well."""
    result = load_config(
        {
            "UserLimits": {"waiting": "7"},
            "MongoDBURI": "mongodb://localhost/",
            "MongoDB": 5,
            "Locations/registry.example.com/remotetype": "dockerhub",
            "Platforms/mycluster/squashfs": {"level": "3", "compressor": "zstd"},
        }
    )
    config = result.config
    assert config.user_limits.waiting == 7
    assert config.mongodb == "5"
    assert config.locations["registry.example.com"].remote_type == "dockerv2"
    assert config.systems["mycluster"].squashfs.level == 3
    assert sorted(result.warnings) == [
        'Locations.registry.example.com.remotetype: "dockerhub" is read as "dockerv2"; write it so',
        'MongoDB: 5 is read as "5"; write it so',
        'Platforms.mycluster.squashfs.level: "3" is read as 3; write it so',
        'UserLimits.waiting: "7" is read as 7; write it so',
    ]


def test_valid_values_cause_no_warning() -> None:
    """Values of the right type stay unchanged without a warning; sizes may be text."""
    result = load_config({"MaxImageSize": "1000", "LogLevel": "warn", "Metrics": True})
    assert (result.config.max_image_size, result.warnings) == (1000, ())

"""Settings of the operator's process."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from matview_operator.settings import Settings


def test_everything_has_a_default() -> None:
    settings = Settings()
    assert (settings.namespaces, settings.port, settings.max_concurrent_refreshes) == ((), 8080, 32)
    assert settings.allowed_hosts == ()
    assert (settings.log_level, settings.log_format) == ("INFO", "json")


def test_each_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "NAMESPACES": "a, b,",
        "ALLOWED_HOSTS": "*.Example, 10.0.0.0/8,::1",
        "PORT": "9090",
        "MAX_CONCURRENT_REFRESHES": "4",
        "LEDGER_KEEP_DAYS": "90",
        "IDLE_CONNECTION_SECONDS": "0",
        "SHUTDOWN_GRACE_SECONDS": "0.5",
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": "text",
        "HOST": "127.0.0.1",
        "REVISION": "abc",
        "VERBOSE_ERRORS": "true",
        "LEADER_ELECT": "true",
        "LEASE_NAME": "mine",
        "LEASE_NAMESPACE": "c",
        "SHARD_COUNT": "3",
        "SHARD_INDEX": "2",
        "OF_ANOTHER_VERSION": "x",
    }.items():
        monkeypatch.setenv(f"MATVIEW_{name}", value)
    assert Settings().model_dump() == {
        "namespaces": ("a", "b"),
        "allowed_hosts": ("*.Example", "10.0.0.0/8", "::1"),
        "host": "127.0.0.1",
        "port": 9090,
        "max_concurrent_refreshes": 4,
        "ledger_keep_days": 90,
        "idle_connection_seconds": 0,
        "shutdown_grace_seconds": 0.5,
        "log_level": "DEBUG",
        "log_format": "text",
        "revision": "abc",
        "verbose_errors": True,
        "leader_elect": True,
        "lease_name": "mine",
        "lease_namespace": "c",
        "shard_count": 3,
        "shard_index": 2,
    }


def test_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATVIEW_PORT", "9090")
    assert Settings(port=9191).port == 9191


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("MAX_CONCURRENT_REFRESHES", "0"),
        ("IDLE_CONNECTION_SECONDS", "61"),
        ("LEDGER_KEEP_DAYS", "7"),
        ("SHUTDOWN_GRACE_SECONDS", "-1"),
        ("LOG_LEVEL", "LOUD"),
        ("ALLOWED_HOSTS", "https://db.example"),
        ("ALLOWED_HOSTS", "*"),
        ("ALLOWED_HOSTS", "db.*.example"),
        ("ALLOWED_HOSTS", "10.0.0.0/33"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_nonsense_is_refused_by_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"MATVIEW_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()

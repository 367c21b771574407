"""Hypothesis has no time limits of its own: a machine that is busy would break them, and pytest-timeout ends what hangs."""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def pytest_configure() -> None:
    settings.register_profile("at any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("at any speed")

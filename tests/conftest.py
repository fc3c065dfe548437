"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Deterministic, and not failed by a busy machine.
settings.register_profile(
    "tanist", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tanist")

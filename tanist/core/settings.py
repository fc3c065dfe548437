"""Every bound and every time of a client: what can grow and what can wait, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SILENCE_S: Final = 3.0
"""A connection that was quiet for so long is closed. If our own turn was that late, all are."""
DOUBT_S: Final = 1.5
"""When all connections were quiet for so long, another node is asked what it knows."""
OVERDUE_S: Final = 1.0
"""A connection that is not welcome by then is waited for no longer: another node is tried
beside it."""
OPENING_S_MAX: Final = 3.0
"""A connection that is not welcome by then is given up."""
HOPS_MAX: Final = 10
"""MOVED answers in a row. After that there is a pause before the search begins again."""
BACKOFF_S: Final = 0.05
"""Pause after the first failure; it doubles."""
BACKOFF_S_MAX: Final = 2.0
"""The longest pause. Each is cut by up to a half, by chance, so that clients spread."""
READY_S: Final = 0.02
"""A leg for which messages wait gets the credit of an idle one after so long."""
RUNS_MAX: Final = 16_000
"""Ranges that a consumer presents when it resumes. What it has buffered beyond is let go."""
SETTLEMENT_RUNS_MAX: Final = 20_000
"""Ranges in one ACK or REQUEUE frame; more become several frames."""
STALE_MAX: Final = 10_000
"""Ranges that `flush` has to report; older ones are forgotten first."""
CLOSING_S: Final = 1.0
"""Given to nodes to answer the last CLOSE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What an application chooses for a client."""

    name: str = "tanist-python"
    """Shown by nodes in their logs."""

    failover_timeout_s: float = 30.0
    """While no owner answers, calls wait for so long; then `FailoverTimeout` is raised."""

    window_messages: int = 100_000
    """Posted and not answered, per producer. Beyond it `post` says to wait; at twice that it
    raises."""

    window_bytes: int = 8 << 20
    """The same in bytes of bodies and properties."""

    prefetch_messages: int = 4096
    """Ahead of the application, per consumer, unless it says otherwise."""

    prefetch_bytes: int = 8 << 20
    """The same in bytes."""

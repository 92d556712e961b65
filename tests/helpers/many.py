"""How many examples hypothesis tries: few in the suite, as many as `FUZZ` says under `make fuzz`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings


def many(n: int) -> settings:
    """`n` examples in the suite; `FUZZ` of them, new ones every time, where that is set."""
    wanted = int(os.environ.get("FUZZ", "0"))
    if not wanted:
        return settings(max_examples=n, deadline=None, suppress_health_check=list(HealthCheck))
    return settings(
        max_examples=wanted,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
        phases=[phase for phase in Phase if phase is not Phase.explain],
        print_blob=True,
    )

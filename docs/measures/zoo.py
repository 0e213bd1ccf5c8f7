"""How far the four backends are apart, and float64 reaches, in the networks of the zoo.

That takes an hour. So, unlike the others, these figures stay when the source changes, and the page says of
when they are.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from benchmarks.zoo import results
from common.architecture import ZOO


def parts() -> list[str]:
    """One for each network."""
    return [f"zoo/{name}" for name in ZOO if not name.endswith("_v1")]


def measure(part: str) -> dict[str, Any]:
    """The worst deviations of logits, gradients and weights after the steps that are claimed; their horizons.

    Raises:
        RuntimeError: if the backends are not proven the same.
    """
    found = results(part.removeprefix("zoo/"), "--precision", "float64")
    if not found["proven"]:
        raise RuntimeError(f"{part}: {found['verdict']}")
    deviations, horizon = found["deviations"]["float64"], found["horizon"]
    quantities = ("logits", "gradients", f"weights, {found['steps_claimed']} steps on")
    return {
        "day": datetime.now(UTC).date().isoformat(),
        "minutes": found["minutes"],
        "start": "γ = 0" if found["steps_start_asleep"] else "as drawn",
        "steps": found["steps_claimed"],
        "deviations": [max(deviations[of].values()) for of in quantities],
        "horizon": [horizon[of] for of in quantities],
    }

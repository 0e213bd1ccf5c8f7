"""What `verify` knows."""

from __future__ import annotations

from typing import Any

from common.proof.traps import TRAPS


def measure() -> dict[str, Any]:
    """How many mistakes it tries."""
    return {"traps": len(TRAPS)}

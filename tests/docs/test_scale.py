"""The page on scale stands on a simulation; what was measured must bear it out."""

import json
from pathlib import Path

DATA = Path(__file__).parents[2] / "docs" / "_data"


def test_the_simulation_gives_what_was_measured() -> None:
    figures = json.loads((DATA / "scale.json").read_text(encoding="utf-8"))["figures"]
    assert len(figures["check"]["rows"]) == 8  # four frameworks, two and four workers
    assert figures["worst"] <= 0.3

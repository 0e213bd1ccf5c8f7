"""The page on scale stands on a simulation; what was measured must bear it out."""

import source


def test_the_simulation_gives_what_was_measured() -> None:
    figures = source.read("scale")["figures"]
    assert len(figures["check"]["rows"]) == 8  # four frameworks, two and four workers
    assert figures["worst"] <= 0.3

"""The simulation of a step on several workers: what it must give where one can tell."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import scale
from benchmarks.scale import Link, Traffic, find_link, ring, ring_or_tree, server, simulate, tree
from common import architecture

NOTHING = Link(0.0, float("inf"))
SLOW = Link(1e-3, 1e8)
RESNET18 = Traffic.of(architecture("resnet18"))


def test_what_a_step_sends_is_what_the_network_has() -> None:
    weights = sum(
        int(np.prod(shape))
        for name, shape in architecture("resnet18").parameter_shapes().items()
        if "running" not in name
    )
    assert RESNET18.gradients == 4 * weights
    assert len(RESNET18.moments) == 17 and RESNET18.sums == 68
    assert RESNET18.moments[0] == 4 * 64


def test_a_link_that_costs_nothing_leaves_the_computing() -> None:
    for overlap in (True, False):
        assert simulate(RESNET18, 2.0, 8, NOTHING, overlap=overlap) == pytest.approx(2.0)


def test_without_computing_the_sums_are_left() -> None:
    gradients = ring(RESNET18.gradients, 4, SLOW)
    moments = sum(4 * ring(size, 4, SLOW) for size in RESNET18.moments)
    options = {"sum_up": ring, "overlap": False}
    assert simulate(RESNET18, 0.0, 4, SLOW, **options) == pytest.approx(gradients + moments)
    assert simulate(RESNET18, 0.0, 4, SLOW, synchronised=False, **options) == pytest.approx(gradients)


def test_overlap_hides_gradients_behind_computing() -> None:
    apart, hidden = (
        simulate(RESNET18, 10.0, 4, SLOW, overlap=overlap, synchronised=False) for overlap in (False, True)
    )
    assert 10.0 < hidden < apart


def test_a_ring_is_best_for_much_a_tree_for_little_and_a_server_for_few_workers() -> None:
    assert ring_or_tree(1e9, 64, SLOW) == ring(1e9, 64, SLOW) < tree(1e9, 64, SLOW)
    assert ring_or_tree(1e2, 64, SLOW) == tree(1e2, 64, SLOW) < ring(1e2, 64, SLOW)
    assert server(1e9, 64, SLOW) > 30 * ring(1e9, 64, SLOW)


@pytest.mark.parametrize("sum_up", [ring, server])
@pytest.mark.parametrize("workers", [2, 4])
def test_two_networks_tell_the_link(sum_up: scale.Sum, workers: int) -> None:
    computing = dict.fromkeys(scale.NETWORKS, 0.5)
    together = {
        name: simulate(Traffic.of(arch), 0.5, workers, SLOW, sum_up, overlap=False)
        for name, arch in scale.NETWORKS.items()
    }
    found = find_link(computing, together, workers, sum_up)
    assert found.latency == pytest.approx(SLOW.latency)
    assert found.bandwidth == pytest.approx(SLOW.bandwidth)

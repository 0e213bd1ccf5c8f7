"""Each framework's own network of a name: which it is, what it is called, and that it trains."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from common.architecture import Architecture, architecture
from common.backend import load_backend
from common.errors import BadInput, MissingBackend
from tests.helpers import one_line

RESNEXT = architecture("resnext50_32x4d", in_channels=3)
LABELS = {
    "mxnet": ("Gluon's model zoo", "plain Gluon"),
    "torch": ("torchvision", "torchvision"),
    "tf": ("Keras functional", "Keras functional"),
    "jax": ("Flax's ImageNet example", "plain Flax"),
}


def reference(backend: str, name: str, arch: Architecture) -> Any:
    try:
        return load_backend(backend).speed().Reference(name, arch, "float32", "cpu")
    except MissingBackend as missing:
        pytest.skip(str(missing))


@pytest.mark.deep
def test_the_label_says_whose_network_it_is(backend: str) -> None:
    resnet = reference(backend, "resnet18", architecture("resnet18"))
    assert (resnet.label, reference(backend, "resnext50_32x4d", RESNEXT).label) == LABELS[backend]


@pytest.mark.deep
def test_a_resnext_trains(backend: str) -> None:
    """As it is in torchvision; where we write it, fewer and smaller stages will do."""
    if backend == "torch":
        net = reference(backend, "resnext50_32x4d", RESNEXT)
    else:
        small = {"stages": ((1, 16), (2, 32)), "groups": (2, 4), "stem_channels": 8}
        net = reference(backend, "small", Architecture(block="resnext", bot_mul=0.5, in_channels=3, **small))
    x = np.random.default_rng(0).random((2, 3, 33, 33), np.float32)
    losses = [net.train_step(x, np.array([1, 2], np.int32), lr=0.01, momentum=0.9) for _ in range(2)]
    assert np.isfinite(losses).all() and losses[0] != losses[1]
    assert net.predict(x).shape == (2, 10)


@pytest.fixture
def mxnet(backends: list[str]) -> str:
    if "mxnet" not in backends:
        pytest.skip("MXNet is not under test")
    return "mxnet"


@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2"])
def test_gluons_network_has_the_convolutions_of_ours(mxnet: str, name: str) -> None:
    """Their shapes, and so their groups."""
    arch = architecture(name, in_channels=3)
    net = reference(mxnet, name, arch)._net
    theirs = Counter(p.shape for p in net.collect_params().values() if len(p.shape) == 4)
    assert theirs == Counter(shape for shape in arch.parameter_shapes().values() if len(shape) == 4)


def test_what_gluons_zoo_lacks_is_one_line(mxnet: str) -> None:
    with pytest.raises(BadInput) as error:
        reference(mxnet, "small", Architecture(stages=((1, 4),), stem_channels=4))
    one_line(error, "Gluon's model zoo has no small")


@pytest.mark.deep
def test_gluons_own_names_are_in_its_zoo(mxnet: str) -> None:
    assert reference(mxnet, "resnet18_v1", architecture("resnet18_v1")).label == "Gluon's model zoo"

"""What holds for MXNet alone: its names, types, contexts and random state are a Gluon user's own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import load_backend
from common.architecture import Architecture
from tests.helpers import random_weights

SMALL = Architecture(stages=((1, 4), (2, 6)), num_classes=5, stem_channels=4)


@pytest.fixture
def mx(backends: list[str]) -> Any:
    if "mxnet" not in backends:
        pytest.skip("MXNet is not under test")
    import_module("resnet_mxnet")  # first: it lends NumPy what MXNet needs
    return import_module("mxnet")


@pytest.fixture
def net(mx: Any) -> Any:
    """A small network that has its weights."""
    from resnet_mxnet import ResNet

    net = ResNet(SMALL)
    net(mx.np.zeros((2, 1, 32, 32)))
    return net


def test_layers_and_gluons_files_have_the_canonical_names(mx: Any, net: Any, tmp_path: Path) -> None:
    assert list(net.activations(mx.np.zeros((2, 1, 32, 32)))) == SMALL.stage_names()
    assert net.net.last.dense.weight.shape == (5, 6)
    path = str(tmp_path / "net.params")
    net.save_parameters(path)
    expected = set()
    for name in SMALL.parameter_shapes():
        if "bn" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        expected.add("net." + name.replace("last.", "last.dense."))
    assert set(mx.npx.load(path)) == expected


@pytest.mark.parametrize("case", ["float64", "another context"])
@pytest.mark.parametrize("lazy", [False, True], ids=["", "lazy"])
def test_a_summary_is_taken_where_and_as_the_network_is(
    mx: Any, net: Any, case: str, lazy: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from resnet_mxnet import ResNet

    net = ResNet(SMALL) if lazy else net
    if case == "float64":
        net.cast("float64")
    else:
        net.collect_params().reset_ctx(mx.cpu(1))
    net.layer_summary((2, 1, 32, 32))
    assert capsys.readouterr().out.splitlines()[-1].endswith("(2, 5)")


def test_a_summary_leaves_the_network_as_it_was(mx: Any, net: Any) -> None:
    before = {name: p.data().asnumpy() for name, p in net.collect_params().items()}
    with mx.autograd.record():
        net.layer_summary((2, 1, 32, 32))
        assert mx.autograd.is_training()
    for name, p in net.collect_params().items():
        np.testing.assert_array_equal(p.data().asnumpy(), before[name])


def test_a_network_cast_to_float64_draws_its_weights(mx: Any) -> None:
    from resnet_mxnet import ResNet

    net = ResNet(SMALL)
    net.cast("float64")
    assert net(mx.np.zeros((2, 1, 32, 32), dtype="float64")).dtype == np.float64
    conv = net.net.b2[0].conv1.weight.data().asnumpy()
    assert conv.dtype == np.float64
    assert 0.8 < np.abs(conv).max() / np.sqrt(6 / ((4 + 4) * 9)) <= 1


def test_building_leaves_the_random_state(mx: Any) -> None:
    def draws() -> list[np.ndarray]:
        return [mx.np.random.uniform(size=3).asnumpy(), mx.nd.random.uniform(shape=3).asnumpy()]

    mx.random.seed(3)
    expected = draws()
    mx.random.seed(3)
    model = load_backend("mxnet").build(SMALL)
    model.load_weights(random_weights(SMALL))
    model.weights()
    np.testing.assert_array_equal(draws(), expected)


# A build for GPUs


def test_cuda_is_loaded_from_nvidias_packages_before_mxnet(mx: Any, tmp_path: Path) -> None:
    from resnet_mxnet import compat

    for package, name in compat._CUDA.items():
        folder = tmp_path / "nvidia" / package / "lib"
        folder.mkdir(parents=True)
        source = folder / "library.c"
        source.write_text(f"int of_{package}(void) {{ return 0; }}\n")
        shared = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source]
        subprocess.run(["g++", *shared], check=True)
    program = """
import os, resnet_mxnet
print(os.environ["NVIDIA_TF32_OVERRIDE"], open("/proc/self/maps").read())
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(compat.__file__).parents[1]}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("0 ")
    for package, name in compat._CUDA.items():
        assert str(tmp_path / "nvidia" / package / "lib" / name) in done.stdout


def test_a_library_that_does_not_load_is_one_line(mx: Any, tmp_path: Path) -> None:
    (tmp_path / "mxnet.py").write_text("raise OSError('libcuda.so.1: cannot open shared object file')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}"}
    program = "import resnet_mxnet"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    *_, line = done.stderr.splitlines()
    assert "needs NVIDIA's driver" in line and "resnet-tabs[mxnet-gpu]" in line

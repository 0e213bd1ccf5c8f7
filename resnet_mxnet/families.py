"""Other networks in Gluon, built and loaded by their own libraries, for ours to be held against."""

from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from mxnet import gluon, np
from mxnet.gluon import nn
from mxnet.gluon.model_zoo import vision
from numpy.typing import NDArray

from common.architecture import Architecture
from common.errors import BadInput


def gluon_resnet(arch: Architecture) -> gluon.HybridBlock:
    """The first version of ResNet in Gluon's model zoo."""
    block = vision.BasicBlockV1 if arch.block == "residual" else vision.BottleneckV1
    depths, channels = zip(*arch.stages, strict=True)
    return vision.ResNetV1(block, list(depths), [arch.stem_channels, *channels], classes=arch.num_classes)


def resnetv1b() -> ModuleType:
    """GluonCV's module of that name, alone: the package itself refuses to be imported beside PyTorch 2.

    Raises:
        ImportError: if GluonCV is not installed.
    """
    package = find_spec("gluoncv")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'gluoncv'", name="gluoncv")
    file = Path(package.origin).with_name("model_zoo") / "resnetv1b.py"
    module = ModuleType("resnetv1b")
    SourceFileLoader(module.__name__, str(file)).exec_module(module)
    return module


def gluoncv_resnet(arch: Architecture) -> gluon.HybridBlock:
    """GluonCV's ResNet v1b, which has its own widths."""
    zoo = resnetv1b()
    block = zoo.BasicBlockV1b if arch.block == "residual" else zoo.BottleneckV1b
    depths, channels = zip(*arch.stages, strict=True)
    if arch.stem_channels != 64 or channels != tuple(64 * 2**k * block.expansion for k in range(4)):
        raise BadInput("GluonCV's class builds its own four stages of 64, 128, 256 and 512 planes only")
    return zoo.ResNetV1b(block, list(depths), classes=arch.num_classes)


def d2l_resnet(arch: Architecture) -> gluon.Block:
    """The chapter's ResNet, of d2l's blocks ("Dive into Deep Learning", sections 8.6.3 and 8.6.5)."""
    from d2l import mxnet as d2l

    kind = d2l.Residual if arch.block == "residual" else d2l.ResNeXtBlock
    net = nn.Sequential()
    stem = nn.Sequential()
    stem.add(
        nn.Conv2D(arch.stem_channels, kernel_size=7, strides=2, padding=3),
        nn.BatchNorm(),
        nn.Activation("relu"),
        nn.MaxPool2D(pool_size=3, strides=2, padding=1),
    )
    net.add(stem)
    for blocks in arch.blocks():
        stage = nn.Sequential()
        stage.add(*[kind(**block.chapter_options) for block in blocks])
        net.add(stage)
    net.add(nn.GlobalAvgPool2D(), nn.Dense(arch.num_classes))
    model = gluon.Block()
    model.net = net
    model.forward = net.forward
    return model


NETWORKS: dict[str, Callable[[Architecture], gluon.Block]] = {
    "gluon": gluon_resnet,
    "gluoncv": gluoncv_resnet,
    "d2l-mxnet": d2l_resnet,
}


def own_network(family: str, arch: Architecture, path: Path) -> Callable[[NDArray], NDArray]:
    """The family's own network with the parameters of a file, in float64: images (N, C, H, W) → logits.

    Raises:
        ImportError: if its library is not installed.
        ValueError: if its library builds no such network.
    """
    net = NETWORKS[family](arch)
    net.load_parameters(str(path), cast_dtype=True, dtype_source="saved")
    net.cast("float64")
    return lambda x: net(np.array(x, dtype="float64")).asnumpy()

"""Other networks in Gluon, built and loaded by their own libraries, for ours to be held against."""

from collections.abc import Callable
from pathlib import Path

from mxnet import gluon, np
from mxnet.gluon.model_zoo import vision
from numpy.typing import NDArray

from common.architecture import Architecture


def gluon_resnet(arch: Architecture) -> gluon.HybridBlock:
    """The first version of ResNet in Gluon's model zoo."""
    block = vision.BasicBlockV1 if arch.block == "residual" else vision.BottleneckV1
    depths, channels = zip(*arch.stages, strict=True)
    return vision.ResNetV1(block, list(depths), [arch.stem_channels, *channels], classes=arch.num_classes)


NETWORKS: dict[str, Callable[[Architecture], gluon.HybridBlock]] = {"gluon": gluon_resnet}


def own_network(family: str, arch: Architecture, path: Path) -> Callable[[NDArray], NDArray]:
    """The family's own network with the parameters of a file, in float64: images (N, C, H, W) → logits.

    Raises:
        ImportError: if its library is not installed.
    """
    net = NETWORKS[family](arch)
    net.load_parameters(str(path), cast_dtype=True, dtype_source="saved")
    net.cast("float64")
    return lambda x: net(np.array(x, dtype="float64")).asnumpy()

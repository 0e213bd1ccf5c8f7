"""What our speed is held against: PyTorch's own matrix product and torchvision's network."""

from collections.abc import Callable
from types import ModuleType

import torch
from numpy.typing import NDArray
from torch import Tensor, library, nn
from torch.nn import functional as F

from common.architecture import Architecture
from common.errors import BadInput, MissingBackend
from resnet_torch.layers import use_full_float32
from resnet_torch.training import autocast

_declared: list[library.Library] = []  # a declaration lives as long as its library


def torchvision() -> ModuleType:
    """The module. Beside a PyTorch without CUDA its compiled operators are missing; its models need none.

    But it fails at import, and timm with it, where two of the operators are not even declared.
    """
    try:
        import torchvision
    except RuntimeError:
        _declared.append(library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _declared[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


class Reference:
    """torchvision's network in its quickest layout, with autocast and SGD as its training script has them.

    Args:
        name: of the network, such as "resnet18".
        arch: its channels and classes.
        dtype: "float32", "float64", "bfloat16" or "tf32".
        device: "cpu" or "gpu".
        compile: with `torch.compile`.

    Raises:
        ValueError: if torchvision is not installed or has no network of this name.
    """

    label = "torchvision"

    def __init__(self, name: str, arch: Architecture, dtype: str, device: str, compile: bool = False) -> None:
        try:
            models = torchvision().models
        except ImportError:
            raise MissingBackend("torchvision is not installed; run: pip install torchvision") from None
        if not hasattr(models, name):
            raise BadInput(f"torchvision has no {name}")
        if device == "gpu":
            use_full_float32(dtype != "tf32")
        self._bfloat16 = dtype == "bfloat16"
        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        is_faster = device == "cpu" or self._bfloat16  # in memory, (N, H, W, C)
        self._layout = torch.channels_last if is_faster else torch.contiguous_format
        net: nn.Module = getattr(models, name)(num_classes=arch.num_classes)
        net.conv1 = nn.Conv2d(arch.in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self._type = torch.float64 if dtype == "float64" else torch.float32
        self._net = net.to(self._device, self._type, memory_format=self._layout)  # type: ignore[call-overload]
        self._optimizer = torch.optim.SGD(self._net.parameters(), 0.1)
        if compile:
            self._net.compile()

    def train_step(self, x: NDArray, y: NDArray, lr: float, momentum: float = 0.0) -> float:
        """One step of SGD on images (N, C, H, W) and labels (N,); returns the loss before it."""
        self._optimizer.param_groups[0].update(lr=lr, momentum=momentum)
        self._net.train()
        self._optimizer.zero_grad()
        X, Y = self._images_in(x), torch.from_numpy(y).to(self._device).long()
        with autocast(X, self._bfloat16):
            loss = F.cross_entropy(self._net(X), Y)
        loss.backward()
        self._optimizer.step()
        return loss.item()

    @torch.no_grad()
    def predict(self, x: NDArray) -> NDArray:
        """Logits (N, classes) of images (N, C, H, W)."""
        X = self._images_in(x)
        with autocast(X, self._bfloat16):
            return self._net.eval()(X).to("cpu", self._type).numpy()

    def _images_in(self, x: NDArray) -> Tensor:
        X = torch.from_numpy(x).to(self._device, self._type)
        return X.contiguous(memory_format=self._layout)


def matrix_product(size: int, dtype: str, device: str) -> Callable[[], None]:
    """A function that multiplies two size × size matrices once, and waits for the result."""
    where = torch.device("cuda" if device == "gpu" else "cpu")
    if device == "gpu":
        use_full_float32(dtype != "tf32")
    A = torch.ones(size, size, dtype=getattr(torch, dtype.replace("tf32", "float32")), device=where)

    def multiply() -> None:
        (A @ A)[0, 0].item()

    return multiply


def device_memory() -> int:
    """Bytes: the most that this process has used of the GPU."""
    return torch.cuda.max_memory_allocated()

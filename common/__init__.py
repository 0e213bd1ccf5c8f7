"""resnet-tabs: one ResNet in four frameworks, and the proof. This part knows no framework."""

from common.architecture import Architecture, architecture
from common.backend import Evaluation, available_backends, load_backend
from common.weights import initial_weights, load_checkpoint, save_checkpoint

__all__ = [
    "Architecture",
    "Evaluation",
    "architecture",
    "available_backends",
    "initial_weights",
    "load_backend",
    "load_checkpoint",
    "save_checkpoint",
]

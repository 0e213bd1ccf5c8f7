"""Training, once for all four: the loop around their steps, and runs on disk."""

from common.training.loop import Metrics, check_fits, evaluate, train, train_all
from common.training.schedules import learning_rate
from common.training.trainer import Trainer

__all__ = ["Metrics", "Trainer", "check_fits", "evaluate", "learning_rate", "train", "train_all"]

"""The learning rate of a step."""

from __future__ import annotations

import math

from common.training.settings import Settings


def learning_rate(settings: Settings, step: int, steps_per_epoch: int) -> float:
    """The rate of a step, counted from 0: a linear warm-up, then constant or half a cosine down to 0.

    Warm-up: Goyal et al. 2017, section 2.2. Cosine: Loshchilov and Hutter 2017, equation 5, no restarts.
    """
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.lr
    progress = (step - warmup) / (settings.epochs * steps_per_epoch - warmup)
    return settings.lr * (1 + math.cos(math.pi * progress)) / 2

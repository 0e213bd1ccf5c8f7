"""Traps that only training shows: short runs in PyTorch, each with one thing that is another than in ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from measures.shared import SIZE, test_images, trained
from torch import Tensor, nn
from torch.nn import functional as F

from common import Architecture, load_backend
from common.data import full
from common.deviation import deviation
from resnet_torch import ResNet

# As deep as ResNet-18, with a quarter of its channels, so that all the runs take minutes.
NETWORK = Architecture(stages=((2, 16), (2, 32), (2, 64), (2, 128)), stem_channels=16)
STEPS, BATCH, SEEDS = 100, 64, range(3)
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
SEEN = range(10, STEPS + 1, 10)  # steps after which a run is looked at
Loss = Callable[[Tensor, Tensor], Tensor]
Update = Callable[[int, list[nn.Parameter]], None]


def parts() -> list[str]:
    """One for every page."""
    return [f"training/{name}" for name in MEASURES]


def measure(part: str) -> dict[str, Any]:
    """The figures of a page."""
    return MEASURES[part.partition("/")[2]]()


@cache
def images() -> tuple[Tensor, Tensor]:
    """The first training images of 28×28 pixels, in [0, 1], as many as a run needs, and their labels."""
    data, count = full(), STEPS * BATCH
    pixels = torch.from_numpy(np.array(data.train_images[:count], "float32") / 255)
    return pixels.reshape(count, 1, 28, 28), torch.from_numpy(np.array(data.train_labels[:count], "int64"))


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Those images once, in an order of this seed."""
    X, Y = images()
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    return [(X[i], Y[i]) for i in order.split(BATCH)]


def network(seed: int, dtype: torch.dtype = torch.float32) -> ResNet:
    """A new network, with weights of this seed."""
    torch.manual_seed(seed)
    net = ResNet(NETWORK)
    net(images()[0][:2])  # gives the lazy layers their shapes
    for layer in norms(net):
        layer.reset_running_stats()
    return net.to(dtype)


def norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch norms."""
    return [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]


@torch.no_grad()
def accuracy(net: ResNet, count: int = 1000) -> float:
    """The share of so many test images told right, with running statistics."""
    pixels, labels = test_images(count, 28)
    found = net.eval()(torch.from_numpy(pixels).to(next(net.parameters()).dtype)).argmax(1).numpy()
    net.train()
    return float((found == labels).mean())


def train(
    net: ResNet,
    seed: int,
    update: Update,
    loss: Loss = F.cross_entropy,
    after: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """The losses of a run, whose steps are taken by `update`; what is seen after each is up to `after`."""
    parameters, losses = list(net.parameters()), []
    for step, (X, Y) in enumerate(batches(seed)):
        net.zero_grad()
        value = loss(net(X.to(parameters[0].dtype)), Y)
        value.backward()
        with torch.no_grad():
            update(step, parameters)
        after(step + 1)
        losses.append(float(value.detach()))
    return losses


def sgd(net: ResNet, rate: float = RATE, **options: float) -> Update:
    """PyTorch's SGD, as `train` takes it."""
    optimizer = torch.optim.SGD(net.parameters(), rate, MOMENTUM, **options)
    return lambda step, parameters: optimizer.step() and None


def smooth(losses: list[float]) -> list[float]:
    """Means of five steps, so that a line can be followed."""
    return np.array(losses).reshape(-1, 5).mean(1).tolist()


def curve(series: dict[str, list[float]]) -> dict[str, Any]:
    """Lines of losses over the steps."""
    return {"x": list(range(5, STEPS + 1, 5)), "series": {k: smooth(v) for k, v in series.items()}}


def apart(found: dict[str, list[float]]) -> dict[str, Any]:
    """For each variant the mean over the seeds, and the lowest and highest."""
    rows = [[name, float(np.mean(v)), min(v), max(v)] for name, v in found.items()]
    return {"columns": ["run", "mean of the seeds", "lowest", "highest"], "rows": rows}


def points(right: float, wrong: float, spread: float) -> str:
    """What accuracy is lost, for the table of all traps, unless seeds are as far apart."""
    lost = f"{100 * (right - wrong):.1f} points"
    return lost if abs(right - wrong) > spread else "less than seeds differ"


def compared(variants: dict[str, Callable[[ResNet, int], list[float]]]) -> dict[str, Any]:
    """Runs of each variant from every seed: losses of the first seed, accuracies of all."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    lines: dict[str, list[float]] = {}
    for name, run in variants.items():
        for seed in SEEDS:
            net = network(seed)
            line = run(net, seed)
            lines.setdefault(name, line)
            found[name].append(accuracy(net))
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return {
        "steps": STEPS,
        "batch": BATCH,
        "seeds": len(SEEDS),
        "losses": curve({name: line for name, line in lines.items() if np.isfinite(line).all()}),
        "accuracy": apart(found),
        "means": list(means.values()),
        "spread": max(max(values) - min(values) for values in found.values()),
    }


def softmax() -> dict[str, Any]:
    """Cross-entropy of logits, and of what a softmax made of them."""

    def twice(logits: Tensor, Y: Tensor) -> Tensor:
        return F.cross_entropy(logits.softmax(1), Y)

    found = compared(
        {
            "logits": lambda net, seed: train(net, seed, sgd(net)),
            "softmax before the loss": lambda net, seed: train(net, seed, sgd(net), twice),
        }
    )
    right, wrong = found["means"]
    told = points(right, wrong, found["spread"])
    return found | {"floor": math.log(math.e + 9) - 1, "summary": {"logits": "none", "accuracy": told}}


def running_decay() -> dict[str, Any]:
    """One run, and beside it running statistics of three decays: training itself does not know them."""
    net = network(0)
    for layer in norms(net):
        layer.momentum = 1.0  # the running statistics are the last batch's
    decays = (0.9, 0.99, 0.1)
    start = {name: tensor.clone() for name, tensor in net.state_dict().items() if "running" in name}
    kept = {decay: {name: tensor.clone() for name, tensor in start.items()} for decay in decays}
    told: dict[float, list[float]] = {decay: [] for decay in decays}
    outputs: dict[float, Any] = {}

    def look(step: int) -> None:
        state = net.state_dict()
        for decay, statistics in kept.items():
            for name, tensor in statistics.items():
                tensor.mul_(decay).add_(state[name], alpha=1 - decay)
        if step in SEEN:
            for decay, statistics in kept.items():
                net.load_state_dict(statistics, strict=False)
                told[decay].append(accuracy(net))
                outputs[decay] = logits(net)

    train(net, 0, sgd(net), after=look)
    off = float(deviation(outputs[0.99], outputs[0.9]))
    return {
        "batch": BATCH,
        "accuracy": {"x": list(SEEN), "series": {f"decay {decay}": values for decay, values in told.items()}},
        "last": {f"{decay}": values[-1] for decay, values in told.items()},
        "steps": STEPS,
        "logits": off,
        "logits_0.1": float(deviation(outputs[0.1], outputs[0.9])),
        "left": 0.99**STEPS,
        "summary": {
            "logits": f"{100 * off:.0f} % after {STEPS} steps",
            "accuracy": f"{100 * told[0.9][-1]:.1f} → {100 * told[0.99][-1]:.1f} %",
        },
    }


@torch.no_grad()
def logits(net: ResNet) -> Any:
    """Of 1,000 test images, with running statistics."""
    found = net.eval()(torch.from_numpy(test_images(1000, 28)[0]).to(next(net.parameters()).dtype))
    net.train()
    return found.double().numpy()


def running_variance() -> dict[str, Any]:
    """The trained ResNet-18 with the running variances that batches of some sizes leave in PyTorch."""
    arch, weights, _ = trained("resnet18")
    model = load_backend("torch").build(arch, dtype="float64")
    x, y = test_images(500)
    model.load_weights(weights)
    right = model.predict(x)
    pixels = {f"b{k}": (SIZE // 2**k) ** 2 for k in range(1, 6)}  # of a channel: 16², 8², 4², 2², 1
    rows, off = [], {}
    for count in (2, 4, 8, 32, 128):
        factors = {part: count * n / (count * n - 1) for part, n in pixels.items()}
        scaled = {
            name: tensor * factors[name.partition(".")[0]] if name.endswith("running_var") else tensor
            for name, tensor in weights.items()
        }
        model.load_weights(scaled)
        wrong = model.predict(x)
        off[count] = float(deviation(wrong, right))
        rows.append(
            [
                str(count),
                factors["b1"] - 1,
                factors["b5"] - 1,
                off[count],
                float((wrong.argmax(1) == y).mean()),
            ]
        )
    columns = [
        "images in a batch",
        "first layer: too large by",
        "last stage: too large by",
        "logits off by",
        "told right",
    ]
    return {
        "images": len(x),
        "right": float((right.argmax(1) == y).mean()),
        "table": {"columns": columns, "rows": rows},
        "off": {str(count): value for count, value in off.items()},
        "summary": {
            "logits": f"{100 * off[2]:.0f} % at a batch of 2, {100 * off[128]:.1f} % at 128",
            "accuracy": f"{100 * float((right.argmax(1) == y).mean()):.1f} → {100 * rows[0][-1]:.1f} % at 2",
        },
    }


def inside(rate_at: Callable[[int], float]) -> Update:
    """v = m·v − lr·g; w += v, as Keras and Gluon have it."""
    velocities: dict[int, Tensor] = {}

    def update(step: int, parameters: list[nn.Parameter]) -> None:
        for i, p in enumerate(parameters):
            velocities[i] = MOMENTUM * velocities.get(i, torch.zeros_like(p)) - rate_at(step) * p.grad
            p.add_(velocities[i])

    return update


def outside(rate_at: Callable[[int], float]) -> Update:
    """v = m·v + g; w −= lr·v, as PyTorch has it."""
    velocities: dict[int, Tensor] = {}

    def update(step: int, parameters: list[nn.Parameter]) -> None:
        for i, p in enumerate(parameters):
            velocities[i] = MOMENTUM * velocities.get(i, torch.zeros_like(p)) + p.grad
            p.sub_(rate_at(step) * velocities[i])

    return update


def flat(net: ResNet) -> Any:
    """All parameters, one after another."""
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy().copy()


def path(update: Update) -> list[Any]:
    """The parameters of a float64 run, where it is looked at."""
    net = network(0, torch.float64)
    seen: list[Any] = []
    train(net, 0, update, after=lambda step: seen.append(flat(net)) if step in SEEN else None)
    return seen


def momentum() -> dict[str, Any]:
    """How far the two forms take the weights apart in float64, by the schedule; and two other mistakes."""
    schedules: dict[str, Callable[[int], float]] = {
        "constant rate": lambda step: RATE,
        "a tenth from the middle on": lambda step: RATE / (1 if step < STEPS // 2 else 10),
        "cosine": lambda step: RATE * (1 + math.cos(math.pi * step / STEPS)) / 2,
    }
    off = {
        name: [float(deviation(a, b)) for a, b in zip(path(inside(s)), path(outside(s)), strict=True)]
        for name, s in schedules.items()
    }
    found = compared(
        {
            "as the others": lambda net, seed: train(net, seed, sgd(net)),
            "dampening 0.9": lambda net, seed: train(net, seed, sgd(net, dampening=0.9)),
            "rate inside, cosine": lambda net, seed: train(net, seed, inside(schedules["cosine"])),
            "rate outside, cosine": lambda net, seed: train(net, seed, outside(schedules["cosine"])),
        }
    )
    lost = points(found["means"][3], found["means"][2], found["spread"])
    return found | {
        "apart": {"x": list(SEEN), "series": off},
        "last": [values[-1] for values in off.values()],
        "summary": {"logits": f"weights {100 * off['cosine'][-1]:.0f} % under a cosine", "accuracy": lost},
    }


def weight_decay() -> dict[str, Any]:
    """The norm of the weights under each kind of decay, ten times the usual one, in float64."""
    decay = 10 * DECAY

    def shrinking(share: float) -> Update:
        step_of = outside(lambda step: RATE)

        def update(step: int, parameters: list[nn.Parameter]) -> None:
            for p in parameters:
                p.mul_(1 - share)
            step_of(step, parameters)

        return update

    def in_gradient(norms_too: bool) -> Update:
        step_of = outside(lambda step: RATE)

        def update(step: int, parameters: list[nn.Parameter]) -> None:
            for p in parameters:
                if norms_too or p.ndim > 1:
                    p.grad.add_(p, alpha=decay)
            step_of(step, parameters)

        return update

    kinds = {
        "in the gradient": in_gradient(norms_too=True),
        "in the gradient, not of norms and biases": in_gradient(norms_too=False),
        "decoupled, times the rate": shrinking(RATE * decay),
        "no decay": outside(lambda step: RATE),
    }
    paths = {name: path(update) for name, update in kinds.items()}
    sizes = {name: [float(np.linalg.norm(w)) for w in seen] for name, seen in paths.items()}
    right = paths["in the gradient"][-1]
    off = {name: float(deviation(seen[-1], right)) for name, seen in paths.items()}
    wrong = off["decoupled, times the rate"]
    return {
        "decay": decay,
        "rate": RATE,
        "steps": STEPS,
        "norm": {"x": list(SEEN), "series": sizes},
        "off": list(off.values()),
        "summary": {"logits": f"weights {100 * wrong:.0f} %", "accuracy": "in long runs only"},
    }


@torch.no_grad()
def draw(net: ResNet, law: str) -> None:
    """Draw the weights anew, as this framework does."""
    for layer in net.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        fan_in = layer.weight[0].numel()
        if law == "PyTorch":
            nn.init.uniform_(layer.weight, -(fan_in**-0.5), fan_in**-0.5)
            nn.init.uniform_(layer.bias, -(fan_in**-0.5), fan_in**-0.5)
        elif law == "Flax":
            nn.init.trunc_normal_(layer.weight, 0, 1, -2, 2)
            layer.weight.mul_(fan_in**-0.5 / 0.8796)  # the deviation of what is left after the cut
        elif law == "Gluon":
            nn.init.uniform_(layer.weight, -0.07, 0.07)


def initialisation() -> dict[str, Any]:
    """Runs whose weights were drawn from four laws."""

    def from_law(law: str) -> Callable[[ResNet, int], list[float]]:
        def run(net: ResNet, seed: int) -> list[float]:
            draw(net, law)
            return train(net, seed, sgd(net))

        return run

    found = compared({law: from_law(law) for law in ("Glorot", "PyTorch", "Flax", "Gluon")})
    lost = max(found["means"]) - min(found["means"])
    return found | {
        "lost": lost,
        "summary": {
            "logits": "another network",
            "accuracy": points(lost, 0, found["spread"]),
        },
    }


MEASURES: dict[str, Callable[[], dict[str, Any]]] = {
    "softmax": softmax,
    "running_decay": running_decay,
    "running_variance": running_variance,
    "momentum": momentum,
    "weight_decay": weight_decay,
    "initialisation": initialisation,
}

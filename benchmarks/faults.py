"""What `compare` finds: known traps in the outputs of evaluation, and the smallest faults in all it looks at.

Each is alone in a network that is else right. A trap that changes no output of a network is left out.

faults         in four networks of the zoo, and one fault in each of forty random networks, which the
               backends compute rightly too: how many are DIFFERENT, with the right place (an hour or two)
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from common import oracle
from common.architecture import Architecture, architecture
from common.backend import available_backends
from common.data import eight, sample
from common.oracle import Array
from common.proof.candidate import Candidate, Reference
from common.proof.compare import compare
from common.proof.judge import Comparison, Evidence, Job, judge
from common.proof.traps import TRAPS, Trap, port
from common.weights import initial_weights

NETWORKS = {"resnet18": (1, 96, 96), "resnet50": (1, 96, 96), "resnet101": (1, 96, 96)}
NETWORKS |= {"resnext50_32x4d": (3, 64, 64)}
STEPS, RANDOM_NETWORKS = 5, 40


class Off(oracle.Pass):
    """The oracle's pass with something a little off in the layer named `at`."""

    def __init__(self, arch: Architecture, weights: Any, training: bool, at: str) -> None:
        super().__init__(arch, weights, training)
        self.at = at


class OneGradient(Off):
    """One kernel's gradient, by 1e-8."""

    def _collect(self, name: str, backward: Callable) -> Callable:
        collecting = super()._collect(name, backward)

        def collecting_off(dy: Array) -> Array:
            dx = collecting(dy)
            if name == self.at:
                self.gradients[f"{name}.weight"] = self.gradients[f"{name}.weight"] * (1 + 1e-8)
            return dx

        return collecting_off


class Single(Off):
    """One convolution's output, rounded to float32."""

    def convolution(
        self, name: str, x: Array, stride: int = 1, padding: str = "symmetric"
    ) -> tuple[Array, Callable]:
        y, back = super().convolution(name, x, stride, padding)
        return (y.astype(np.float32).astype(np.float64) if name == self.at else y), back


class Unbiased(oracle.Pass):
    """Running variances of n − 1 values, as PyTorch's."""

    def batch_norm(self, name: str, x: Array) -> tuple[Array, Callable]:
        y, back = super().batch_norm(name, x)
        if self.training:
            n = x.size // x.shape[1]
            before = self.arch.decay * self.weights[f"{name}.running_var"]
            batch = self.running[f"{name}.running_var"] - before
            self.running[f"{name}.running_var"] = before + batch * n / (n - 1)
        return y, back


@dataclass(frozen=True)
class Fault:
    """A small fault.

    Attributes:
        name: what is off.
        place: what the finding has to name as the first that differs.
        kind: in place of the oracle's pass.
        changed: what it makes of the job.
    """

    name: str
    place: str
    kind: Callable[..., oracle.Pass] = oracle.Pass
    changed: Callable[[Job], Job] = lambda job: job


def small_faults(gradient: str, single: str) -> list[Fault]:
    """Among them the gradient of one convolution, and the output of one in float32, given by name."""

    def axes(job: Job, **changed: Any) -> Job:
        return replace(job, arch=replace(job.arch, **changed))

    def epsilon(job: Job) -> Job:
        return axes(job, epsilon=job.arch.epsilon * 1.0001)

    def decay(job: Job) -> Job:
        return axes(job, decay=job.arch.decay + 1e-6)

    def rate(job: Job) -> Job:
        return replace(job, lr=job.lr * (1 + 1e-7))

    stage = single.partition(".")[0]
    return [
        Fault("epsilon × 1.0001", "First layer that differs: b1,", changed=epsilon),
        Fault("decay + 1e-6", "First statistic that differs: b1.bn.running_mean,", changed=decay),
        Fault("rate × (1 + 1e-7)", "First step that differs: 1,", changed=rate),
        Fault("variance over n − 1", "First statistic that differs: b1.bn.running_var,", Unbiased),
        Fault(
            f"gradient of {gradient} × (1 + 1e-8)",
            f"First gradient that differs: {gradient}.weight,",
            partial(OneGradient, at=gradient),
        ),
        Fault(f"{single} in float32", f"First layer that differs: {stage},", partial(Single, at=single)),
    ]


def known(job: Job) -> Comparison:
    """The oracle's evidence, and that from moved weights."""
    found, reference = Comparison(job), Reference(job)
    looks = reference.look()
    found.asleep = reference.choose_start()
    right, moved = (
        Evidence.of(look, trained, path)
        for look, (trained, path) in zip(looks, reference.finish(), strict=True)
    )
    found.evidence["oracle", "float64"], found.moved = right, moved
    return found


def judged(known: Comparison, evidence: Evidence) -> Comparison:
    """What is found of this evidence, as if it were a framework's."""
    found = Comparison(known.job, moved=known.moved, asleep=known.asleep)
    found.evidence |= known.evidence
    found.evidence["torch", "float64"] = evidence
    judge(found, ["torch"], ["float64"])
    return found


def computed(known: Comparison, fault: Fault) -> Evidence:
    """The evidence of an oracle with this fault."""
    job = fault.changed(known.job)
    model = oracle.Model(job.arch)
    model.new_pass = fault.kind
    candidate = Candidate(model, job, "float64")
    look = candidate.look()
    candidate.start(known.asleep)
    return Evidence.of(look, *candidate.finish())


def trapped(known: Comparison, trap: Trap) -> tuple[Evidence, str] | None:
    """The evidence of an oracle that fell into this trap, and the first layer it changes; None if none is."""
    job, right = known.job, known.evidence["oracle", "float64"]
    outputs = list(port(job.arch, job.weights, job.x, 0, [trap]))
    layers = dict(zip(job.arch.stage_names(), outputs, strict=True))
    changed = [name for name, y in layers.items() if not np.array_equal(y, right.activations[name])]
    if not changed:
        return None
    return replace(right, activations=layers), f"First layer that differs: {changed[0]},"


def convolutions(arch: Architecture) -> list[str]:
    """Names of the convolutions in the blocks' chains."""
    return [
        f"{block.name}.conv{i}"
        for stage in arch.blocks()
        for block in stage
        for i in range(1, len(block.chain) + 1)
    ]


def random_network(generator: np.random.Generator) -> tuple[Architecture, tuple[int, int, int]]:
    """Up to 60 layers, and the shape of its images."""
    bottlenecks = bool(generator.integers(2))
    stages, groups = [], []
    for _ in range(generator.integers(2, 5)):
        width = int(generator.integers(1, 5))
        groups.append(width)
        most = 4 if bottlenecks else 7
        channels = width * int(generator.integers(2, 9)) * 2
        stages.append((int(generator.integers(1, most + 1)), channels))
    own: dict[str, Any] = {}
    if bottlenecks:
        own = {"block": "resnext", "groups": tuple(groups), "bot_mul": 0.5}
    arch = Architecture(
        tuple(stages),
        **own,
        padding=str(generator.choice(["symmetric", "same"])),
        epsilon=float(generator.choice([1e-5, 1e-3])),
        decay=float(generator.choice([0.9, 0.99])),
        in_channels=int(generator.choice([1, 3])),
        stem_channels=int(generator.integers(2, 17)),
    )
    height, width = (int(size) for size in generator.integers(40, 97, 2))
    return arch, (arch.in_channels, height, width)


def cases(right: Comparison) -> Iterator[tuple[str, Evidence, str]]:
    """Each fault and trap of a network: its name, the evidence with it, and the place to be named."""
    names = convolutions(right.job.arch)
    middle, first = (names[len(names) // 2], names[-1]), (names[-2], names[1])
    for fault in itertools.chain(small_faults(*middle), small_faults(*first)[-2:]):
        yield fault.name, computed(right, fault), fault.place
    for trap in TRAPS:
        if case := trapped(right, trap):
            yield trap.cause, *case


def in_the_zoo() -> int:
    """Each trap and fault in these networks; returns how many were not found."""
    lost = 0
    for name, shape in NETWORKS.items():
        start = time.monotonic()
        arch = architecture(name, in_channels=shape[0])
        x, y = eight(sample(), arch, shape)
        right = known(Job(arch, initial_weights(arch), x, y, steps=STEPS, drawn=True))
        count, missed, elsewhere = 0, [], []
        for case, evidence, place in cases(right):
            count += 1
            said = " ".join(judged(right, evidence).differences)
            if not said:
                missed.append(case)
            elif place not in said:
                elsewhere.append(f"{case}: {said.partition('First ')[2]}, not {place}")
        found = count - len(missed)
        line = f"{name}: {count} faults, {found} found, {found - len(elsewhere)} with the right place"
        print(f"{line}; {time.monotonic() - start:.0f} s", flush=True)
        for line in (*(f"not found: {case}" for case in missed), *elsewhere):
            print(f"  {line}", flush=True)
        lost += len(missed)
    return lost


def in_random_networks() -> int:
    """One fault each, and none in what the backends compute; returns how many verdicts were wrong."""
    names = [backend.name for backend in available_backends()]
    false_differences, missed, elsewhere = [], [], []
    for number in range(RANDOM_NETWORKS):
        generator = np.random.default_rng(number)
        arch, shape = random_network(generator)
        x, y = eight(sample(), arch, shape)
        job = Job(arch, initial_weights(arch, number), x, y, steps=STEPS, drawn=True)
        found = compare(job, names, ["float64"])
        label = f"network {number}, {len(arch.parameter_shapes())} tensors, {shape}"
        if not found.agree:
            false_differences.append(f"{label}: {found.differences}, {found.failures}")
        chosen = small_faults(*(str(name) for name in generator.choice(convolutions(arch), 2)))
        fault = chosen[number % len(chosen)]
        said = " ".join(judged(found, computed(found, fault)).differences)
        if not said:
            missed.append(f"{label}: {fault.name}")
        elif fault.place not in said:
            elsewhere.append(f"{label}: {fault.name}: {said}")
        print(f"{label}: {'agree' if found.agree else 'DIFFERENT'}; {said or 'NOT FOUND'}", flush=True)
    print(f"{RANDOM_NETWORKS} random networks in {', '.join(names)}")
    for what, cases in (
        ("right and DIFFERENT", false_differences),
        ("with a fault and not found", missed),
        ("with a fault and another place named", elsewhere),
    ):
        print(f"  {what}: {len(cases)}")
        for case in cases:
            print(f"    {case}")
    return len(false_differences) + len(missed)


def faults() -> None:
    """Both; exits with 1 if a verdict was wrong."""
    wrong = in_the_zoo() + in_random_networks()
    sys.exit(1 if wrong else 0)

"""Is it the same network? A checkpoint in every backend, or activations recorded from a port, layer by layer.

Where a recording parts ways with the oracle, the cause is measured: the oracle computes the layer again
with a known trap, then with two, and a trap is named only if that gives what was recorded.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray

from common import horizon
from common.architecture import Architecture, Shape
from common.backend import load_backend
from common.data.images import check_images, read_npy
from common.deviation import deviation
from common.errors import BadInput, MissingFile
from common.horizon import LAYER_BOUNDS, allowed
from common.oracle import Array
from common.processes.workers import Shares
from common.proof.compare import each
from common.proof.judge import AT_ONCE, Findings, deviations, first_outside, worst_pair
from common.proof.traps import TRAPS, Trap, port
from common.reading import brief, open_zip, shown
from common.weights import Weights, from_bfloat16

Activations = dict[str, NDArray]

# A trap is the cause if it brings the deviation below this, or the layer's bound, and down to a hundredth.
EXPLAINED = {"float64": 1e-10, "float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}
GAIN = 100
TELLING = 8  # numbers that are not zero, which do not all fit a type by chance
NEAREST = 4  # traps that are tried together with every other, when none is the cause alone
UNKNOWN = "Cause not recognised: no known trap takes away even half of the deviation"
HALF = 0.5  # a trap that leaves more of the deviation is noise, and is not named


def activations(
    name: str, arch: Architecture, weights: Weights, x: NDArray, dtype: str = "float64", device: str = "cpu"
) -> Activations:
    """What every layer of one backend puts out in evaluation. This is what a process of its own does."""
    model = load_backend(name).build(arch, dtype, device)
    model.load_weights(weights)
    return model.activations(x)


@dataclass(frozen=True)
class Expected:
    """What the oracle computes of images (N, C, H, W), and how far rounding carries each layer."""

    arch: Architecture
    weights: Weights
    x: NDArray
    computed: Activations
    far: dict[str, float]

    @classmethod
    def of(cls, arch: Architecture, weights: Weights, x: NDArray) -> Expected:
        """Let the oracle compute it, and again from moved weights."""
        computed = activations("oracle", arch, weights, x)
        moved = activations("oracle", arch, horizon.moved(weights), x)
        far = {layer: deviation(moved[layer], computed[layer]) for layer in computed}
        return cls(arch, weights, x, computed, far)

    def bounds(self, dtype: str) -> dict[str, float]:
        """How far each layer may be off in this type."""
        return {layer: allowed(LAYER_BOUNDS[dtype], far, dtype) for layer, far in self.far.items()}

    def undecided(self, walk: Iterable[tuple[str, float]], dtype: str) -> list[str]:
        """The layers that differ by more than the least bound, which may be a fault, or rounding."""
        off = (layer for layer, value in walk if not value <= LAYER_BOUNDS[dtype])
        return [layer for layer in dict.fromkeys(off) if not horizon.is_claimed(self.far[layer], dtype)]


def verify(
    expected: Expected,
    names: list[str],
    dtype: str,
    device: str,
    progress: Callable[[str], None] = lambda line: None,
) -> Findings:
    """Run the network in every named backend, each in a process of its own, and decide.

    Args:
        expected: the network and the images, as the oracle has them.
        names: backends to compare with the oracle.
        dtype, device: of the backends.
        progress: is told, in a line, whenever something has been done.
    """
    found = Findings()
    outputs: dict[str, Activations] = {}
    shares = Shares(AT_ONCE)
    network = expected.arch, expected.weights, expected.x

    def gather(name: str) -> None:
        with shares.process() as process:
            start = time.perf_counter()
            outputs[name] = process.run(activations, name, *network, dtype, device)
            progress(f"{name}: {dtype} done in {time.perf_counter() - start:.1f} s")

    names = [name for name in names if name != "oracle"]
    found.failures = each([(name, gather) for name in names], at_once=shares.count)
    evidence = {name: outputs[name] for name in names if name in outputs}  # in the order asked for
    if not evidence:
        return found
    found.deviations[dtype], found.worst_pairs[dtype] = {}, {}
    bounds = found.bounds[dtype] = expected.bounds(dtype)
    found.horizon = expected.far
    walks: dict[str, list[tuple[str, float]]] = {}
    for layer, right in expected.computed.items():
        of_layer = {name: layers[layer] for name, layers in evidence.items()}
        against_oracle, between = deviations(deviation, of_layer, right)
        found.deviations[dtype][layer] = against_oracle
        if between:
            found.worst_pairs[dtype][layer] = worst_pair(between)
        for name, value in {**against_oracle, **between}.items():
            walks.setdefault(name, []).append((layer, value))
    found.unclaimed = expected.undecided(itertools.chain(*walks.values()), dtype)
    for name, walk in walks.items():
        if line := first_outside("layer", walk, bounds.__getitem__):
            found.differences.append(f"{name} in {dtype}: {line}")
    return found


@dataclass(frozen=True)
class Recording:
    """Activations from elsewhere, by layer in the order of computation.

    Attributes:
        layers: as they were stored, in any of the layouts that `readings` knows.
        precision: what the values have, whatever type stores them: of 64, 32 or 16 bits, "bfloat16" too.
        x: the images (N, C, H, W) they were recorded on, where the file has them.
        ignored: names in the file that mean nothing here.
    """

    layers: Activations
    precision: str
    x: NDArray | None
    ignored: list[str]


def read_recording(path: Path, arch: Architecture) -> Recording:
    """The activations in a .npz file, under the names b1, b2, …, last, and the images under x.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is no .npz file, is damaged, has no known name, holds anything but finite floating
            point numbers (Python objects are never unpickled), or images that are none for the network.
    """
    if not path.is_file():
        raise MissingFile(f"{path} not found; give a .npz file that numpy.savez wrote")
    if not is_zipfile(path):
        raise BadInput(f"{path} is not a .npz file; write it with numpy.savez")
    names = arch.stage_names()
    arrays: Activations = {}
    name = "it"
    try:
        with open_zip(path, ratio=100) as archive:  # zeros shrink a lot
            found = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            for name in (name for name in [*names, "x"] if name in found):
                with archive.open(found[name]) as member:
                    arrays[name] = read_npy(member, found[name].file_size)
    except Exception as error:  # of a dozen kinds: NumPy's, zipfile's, zlib's, the tokeniser's
        raise BadInput(
            f"{path} cannot be read: {name} is damaged or holds Python objects, which are never unpickled "
            f"({shown(str(error), 200)}); save plain arrays with numpy.savez"
        ) from None
    layers = {name: array for name, array in arrays.items() if name != "x"}
    if not layers:
        has = ", ".join(map(brief, list(found)[:5])) or "nothing"
        raise BadInput(f"{path} has none of {', '.join(names)}; it has {has}")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise BadInput(f"{name} in {path} must be an array of floating point numbers")
        if not np.isfinite(array).all():
            raise BadInput(f"{name} in {path} has values that are NaN or infinite")
    x = arrays.get("x")
    if x is not None:
        check_images(f"x in {path}", x, arch)
    ignored = [name for name in found if name not in arrays]
    return Recording(layers, _precision(list(layers.values())), x, ignored)


def _precision(arrays: list[NDArray]) -> str:
    """The coarsest type that any of them is stored in, or has all its values in: float32 saved as float64."""
    telling = [array for array in arrays if np.count_nonzero(array) >= TELLING] or arrays
    for name in ("bfloat16", "float16", "float32"):
        with np.errstate(over="ignore"):
            if any(np.array_equal(_rounded(array, name), array) for array in telling):
                return name
    size = min(array.itemsize for array in arrays)
    return {2: "float16", 4: "float32"}.get(size, "float64")


def _rounded(array: NDArray, name: str) -> NDArray:
    """As this type has it; NumPy has no bfloat16, which is the upper half of a float32."""
    if name != "bfloat16":
        return array.astype(name)
    bits = array.astype(np.float32).view(np.uint32) >> 16
    return from_bfloat16(bits.astype(np.uint16))


def readings(array: NDArray, shape: Shape) -> Activations:
    """Every way to read an array as one of this shape, (N, C, H, W) or (N, classes), by name of the layout.

    A layout is no difference: where the shape leaves it open, that which is nearest to the oracle is meant.
    """
    if len(shape) == 2:
        return {"": array} if array.shape == shape else {}
    n, c, h, w = shape
    found = {}
    if array.shape == shape:
        found["NCHW"] = array
    if array.shape == (n, h, w, c):
        found["NHWC"] = array.transpose(0, 3, 1, 2)
    if array.shape == (n, c * h * w):
        found["NCHW flattened"] = array.reshape(shape)
        found["NHWC flattened"] = array.reshape(n, h, w, c).transpose(0, 3, 1, 2)
    return found


def nearest(read: Activations, computed: NDArray) -> tuple[float, str]:
    """The deviation of the reading that is nearest to what was computed, and its name."""
    found = ((deviation(array, computed), name) for name, array in read.items())
    return min(found, key=lambda reading: (np.isnan(reading[0]), reading))


@dataclass(frozen=True)
class Line:
    """A recorded layer.

    Attributes:
        layout: it was read in.
        deviation: from the oracle.
        bound: of that.
        explained: what it is with the cause.
    """

    layer: str
    layout: str
    deviation: float
    bound: float
    explained: float | None = None


@dataclass(frozen=True)
class Match:
    """A recording against the oracle.

    Attributes:
        lines: one for each recorded layer.
        precision, ignored: of the recording.
        difference: the first layer that differs, as a sentence; "" if none does.
        cause: why, as sentences.
        undecided: layers that differ because of rounding, or not: nobody can tell.
    """

    lines: list[Line]
    precision: str
    ignored: list[str]
    difference: str = ""
    cause: str = ""
    undecided: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether no layer differs."""
        return not self.difference and not self.undecided


def check_shapes(recording: Recording, computed: Activations, on: str) -> None:
    """Raise `ValueError` unless every layer has the shape, in some layout, it has `on` these images."""
    for name, array in recording.layers.items():
        shape = computed[name].shape
        if not readings(array, shape):
            n, *rest = shape
            others = f", its NHWC order or ({n}, {np.prod(rest)})" if len(rest) == 3 else ""
            raise BadInput(
                f"{name} is {array.shape}, expected {shape}{others} on {on}; record it on those images, or "
                "give yours, as x in the file or with --images"
            )


@np.errstate(all="ignore")  # a trap may overflow, which makes it the worst
def against(
    expected: Expected, recording: Recording, progress: Callable[[str], None] = lambda line: None
) -> Match:
    """Compare a recording with what the oracle computes on the same images, and look for the cause."""
    lines, computed, bounds = [], expected.computed, expected.bounds(recording.precision)
    for name, array in recording.layers.items():
        value, layout = nearest(readings(array, computed[name].shape), computed[name])
        lines.append(Line(name, layout, value, bounds[name]))
    walk = [(line.layer, line.deviation) for line in lines]
    difference = first_outside("layer", walk, bounds.__getitem__)
    if not difference:
        undecided = expected.undecided(walk, recording.precision)
        return Match(lines, recording.precision, recording.ignored, undecided=undecided)
    differs = next(i for i, line in enumerate(lines) if not line.deviation <= line.bound)
    progress(f"{lines[differs].layer} differs: looking for the cause")
    before = lines[differs - 1] if differs else None
    cause, explained = Search(expected, recording, before, lines[differs]).cause()
    after = [replace(line, explained=explained.get(line.layer)) for line in lines]
    return Match(after, recording.precision, recording.ignored, difference, cause)


@dataclass(frozen=True)
class Trial:
    """What a layer becomes with some traps.

    Attributes:
        off: ‖output − recorded‖₂ / ‖recorded‖₂, which is comparable whatever the traps do to the output.
        left: the share of the deviation without the traps that this is.
        output: the layer's, on the images that were computed.
        traps, text: which, and what to call them.
        alike: trials that come to the same in this layer.
    """

    off: float
    left: float
    output: Array
    traps: tuple[Trap, ...]
    text: str
    alike: tuple[Trial, ...] = ()

    @property
    def texts(self) -> str:
        """Of this and those alike."""
        return " or ".join(trial.text for trial in (self, *self.alike))


class Search:
    """The search for the traps that make a layer what was recorded.

    It begins behind the last recorded layer that agrees, because up to there the port is right. Only the
    image that is furthest off is computed, except where batch statistics need them all.

    Args:
        expected, recording: as for `against`.
        before: the last recorded layer that agrees, if there is one.
        wrong: the first that does not.
    """

    def __init__(self, expected: Expected, recording: Recording, before: Line | None, wrong: Line) -> None:
        self.arch, self.weights, self.recording = expected.arch, expected.weights, recording
        names, x, computed = self.arch.stage_names(), expected.x, expected.computed
        self.wrong, self.right = wrong, computed[wrong.layer]
        self.start = names.index(before.layer) + 1 if before else 0
        self.names = names[self.start :]
        self.given = computed[before.layer] if before else np.asarray(x, np.float64)
        self.bound = wrong.bound
        self.rounding = max(EXPLAINED[recording.precision], *expected.bounds(recording.precision).values())
        self.read = readings(recording.layers[wrong.layer], self.right.shape)
        errors = self.read[wrong.layout] - self.right
        furthest = int(np.linalg.norm(errors.reshape(len(x), -1), axis=1).argmax())
        self.one = slice(furthest, furthest + 1)

    def cause(self) -> tuple[str, dict[str, float]]:
        """Sentences that name the cause or the nearest, and with the cause every layer's deviation."""
        trials = self._singles()
        if not (trials and self._explains(trials[0].off, trials[0].left)):
            trials = sorted(trials + self._pairs(trials), key=_share_left)
        if not trials:
            return UNKNOWN, {}
        best = trials[0]
        if self._explains(best.off, best.left):
            text, explained = self._told_apart(best)
            value = explained[self.wrong.layer]
            if self._explains(value, value / self.wrong.deviation):
                return f"Likely cause: {text}. {self._effect(explained)}", explained
        if best.left <= HALF and (left := self._try(best.traps, best.text, slice(None)).left) <= HALF:
            off = f"with which {self.wrong.layer} is still off by {left * self.wrong.deviation:.1e}"
            return f"Cause not recognised. Nearest: {best.texts}, {off}", {}
        return UNKNOWN, {}

    def _explains(self, off: float, left: float) -> bool:
        return off <= self.rounding and GAIN * left <= 1

    def _told_apart(self, best: Trial) -> tuple[str, dict[str, float]]:
        """Of trials alike in this layer, those that explain most of the later ones: texts and deviations."""
        found = [(trial.text, self._with(trial.traps)) for trial in (best, *best.alike)]
        counts = [sum(value <= self.rounding for value in explained.values()) for _, explained in found]
        found = [one for one, count in zip(found, counts, strict=True) if count == max(counts)]
        return " or ".join(text for text, _ in found), found[0][1]

    def _singles(self) -> list[Trial]:
        """Every trap that can be seen in this layer, nearest first; those that come to the same are one."""
        trials: list[Trial] = []
        for trap in TRAPS:
            if trap.images and self.start > 0:
                continue
            new = self._try((trap,), trap.text(self.arch))
            if deviation(new.output, self.right[self._images((trap,))]) <= self.bound:
                continue
            for i, old in enumerate(trials):
                if old.output.shape == new.output.shape and deviation(new.output, old.output) <= self.bound:
                    trials[i] = replace(old, alike=(*old.alike, new))
                    break
            else:
                trials.append(new)
        return sorted(trials, key=_share_left)

    def _pairs(self, singles: list[Trial]) -> list[Trial]:
        """The nearest traps, if they come nearer at all, each with every other of another kind.

        A pair counts where each trap at least halves what the other leaves. Once one explains the layer,
        only traps of its two kinds can explain it better.
        """
        pairs: list[Trial] = []
        cause: set[str] = set()
        for i, a in enumerate(trial for trial in singles[:NEAREST] if trial.left < 1):
            for b in singles[i + 1 :]:
                kinds = {a.traps[0].kind, b.traps[0].kind}
                if len(kinds) < 2 or cause not in (set(), kinds):
                    continue
                pair = self._try(a.traps + b.traps, f"{a.texts}; and {b.texts}")
                if pair.left <= HALF * min(a.left, b.left):
                    pairs.append(pair)
                    cause = kinds if self._explains(pair.off, pair.left) else cause
        return pairs

    def _try(self, traps: tuple[Trap, ...], text: str, images: slice | None = None) -> Trial:
        images = images or self._images(traps)
        outputs = port(self.arch, self.weights, self.given[images], self.start, traps)
        output = next(itertools.islice(outputs, self.names.index(self.wrong.layer), None))
        off, without = (self._off(array, images) for array in (output, self.right[images]))
        left = np.nan_to_num(np.divide(off, without), nan=np.inf, posinf=np.inf)
        return Trial(off, float(left), output, traps, text)

    def _off(self, output: Array, images: slice) -> float:
        return min(deviation(output, array[images]) for array in self.read.values())

    def _images(self, traps: tuple[Trap, ...]) -> slice:
        return slice(None) if any("statistics" in trap.port for trap in traps) else self.one

    def _with(self, traps: tuple[Trap, ...]) -> dict[str, float]:
        """The deviations of this layer and the later ones of the recording, on all images."""
        outputs = zip(self.names, port(self.arch, self.weights, self.given, self.start, traps), strict=True)
        recorded = self.recording.layers
        return {
            name: nearest(readings(recorded[name], output.shape), output)[0]
            for name, output in outputs
            if name in recorded
        }

    def _effect(self, explained: dict[str, float]) -> str:
        layer, *later = explained
        text = f"With it, {layer} is within {explained[layer]:.1e} of the recording"
        for name in later:
            if not explained[name] <= self.rounding:
                return f"{text}; {name} is still off by {explained[name]:.1e}: look there next"
        return f"{text}, and so are the later layers" if later else text


def _share_left(trial: Trial) -> float:
    return trial.left

"""The command `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.cli.options import Backends, Device, check_device, choose_backends, parse_shape
from common.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from common.architecture import Architecture


def verify(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A .safetensors file.")],
    backends: Backends = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="C,H,W", help="Size of the sample's images. Default: 96×96 and the network's channels."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="X.npy", help="Images (N, C, H, W), floating point, taken as they are."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="What the backends compute in: float64 or float32.")
    ] = "float64",
    recorded: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="FILE.npz",
            help="Activations of another port: b1, b2, …, last, or some of them, and as x its images. "
            "Then only the backends named compute.",
        ),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Show, layer by layer, whether backends or another port compute a checkpoint's network.

    Without --images, on eight images of the shipped sample. Exits with 0 if all agree with the oracle, 1 if
    not, 2 if the question makes no sense.
    """
    from common.data import eight, sample
    from common.proof import report
    from common.proof import verify as verifying
    from common.weights import load_checkpoint

    if precision not in ("float64", "float32"):
        raise BadInput(f"unknown precision {precision!r}; give float64 or float32")
    check_device(device)
    chosen = choose_backends(backends) if backends or not recorded else []
    shape = parse_shape(input_shape) if input_shape else None
    network, weights = load_checkpoint(checkpoint)
    recording = verifying.read_recording(recorded, network) if recorded else None

    if recording and recording.x is not None:
        if images or shape:
            raise BadInput(f"{recorded} has its own images, x; leave out --images and --input-shape")
        x, source = recording.x, f"x in {recorded}"
    elif images and shape:
        raise BadInput("--images are taken as they are; leave out --input-shape")
    elif images:
        x, source = _given(images, network), str(images)
    else:
        shape = shape or (network.in_channels, 96, 96)
        network.check_input((1, *shape))
        data = sample()
        (x, _), source = eight(data, network, shape), data.source

    proven = []
    with report.progress("Verifying", str(checkpoint), x, source) as tell:
        expected = verifying.Expected.of(network, weights, x)
        tell("oracle: done")
        if recording:
            verifying.check_shapes(recording, expected.computed, f"{len(x)} images from {source}")
        installed = [backend.name for backend in chosen if backend.installed]
        found = verifying.verify(expected, installed, precision, device, tell)
        match = verifying.against(expected, recording, tell) if recording else None
    if chosen:
        outcome = report.Outcome(found, chosen)
        report.show_outcome(outcome)
        proven.append(outcome.proven)
    if match:
        report.show_match(match, str(recorded))
        proven.append(match.agrees)
    raise typer.Exit(0 if all(proven) else 1)


def _given(path: Path, network: Architecture) -> NDArray:
    from common.data.images import check_images, read_array

    x = read_array(path)
    if x.dtype.kind != "f":
        raise BadInput(f"{path} must hold floating point numbers, those the network is to see")
    check_images(str(path), x, network)
    return x

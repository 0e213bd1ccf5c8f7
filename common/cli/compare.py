"""The command `compare`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.architecture import architecture
from common.cli.options import (
    Arch,
    Backends,
    Compile,
    Device,
    InputShape,
    check_device,
    choose_backends,
    parse_shape,
)
from common.errors import BadInput


def compare(
    arch: Arch,
    backends: Backends = None,
    input_shape: InputShape = "1,96,96",
    precision: Annotated[str, typer.Option(help="float64, float32 or both.")] = "both",
    steps: Annotated[int, typer.Option(help="SGD steps to take.")] = 20,
    device: Device = "cpu",
    compile: Compile = False,
    workers: Annotated[
        int, typer.Option(help="Train on so many, too, and hold them against one worker; in float64.")
    ] = 1,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights to start from. Default: drawn from seed 0.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="RESNET_TABS_DATA",
            help="Folder of the full Fashion-MNIST. Default: the shipped sample.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for report.html and results.json.")] = Path(
        "compare"
    ),
) -> None:
    """Run every backend on the same images and prove that they agree.

    Exits with 0 if they do, 1 if not, 2 if the question makes no sense.
    """
    from common.data import eight, full, sample
    from common.files import output_folder
    from common.proof import compare as comparing
    from common.proof import report
    from common.proof.judge import Job
    from common.proof.workers import check_divides, compare_workers
    from common.weights import initial_weights, load_checkpoint

    chosen = choose_backends(backends)
    shape = parse_shape(input_shape)
    if precision not in ("float64", "float32", "both"):
        raise BadInput(f"unknown precision {precision!r}; give float64, float32 or both")
    check_device(device)
    if steps < 0:
        raise BadInput(f"--steps must be 0 or more, not {steps}")
    network = architecture(arch, in_channels=shape[0])
    if checkpoint:
        given, weights = load_checkpoint(checkpoint)
        if not given.is_like(network):
            raise BadInput(
                f"checkpoint {checkpoint} is of another architecture than {arch}: {given.to_json()}"
            )
        network = given
    else:
        weights = initial_weights(network)
    network.check_input((1, *shape))
    images = full(data) if data else sample()
    folder = output_folder(out)

    x, y = eight(images, network, shape)
    if workers != 1:
        check_divides(workers, len(x))
        if precision == "float32":
            raise BadInput("--workers compares in float64; give --precision float64 or both")
        if steps == 0:
            raise BadInput("--workers compares steps; give --steps of 1 or more")
    drawn = checkpoint is None
    job = Job(network, weights, x, y, steps=steps, device=device, compile=compile, drawn=drawn)
    installed = [backend.name for backend in chosen if backend.installed]
    with report.progress("Comparing", arch, x, images.source) as tell:
        found = comparing.compare(
            job, installed, ["float64", "float32"] if precision == "both" else [precision], tell
        )
        if workers > 1:
            compare_workers(found, installed, workers)
            tell(f"{workers} workers held against one")
    result = report.Report(found, chosen, arch, images.source)
    report.show(result)
    report.write(result, folder)
    raise typer.Exit(0 if result.proven else 1)

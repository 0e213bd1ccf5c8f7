"""The command `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.architecture import architecture
from common.backend import BACKENDS
from common.cli.options import (
    Arch,
    Compile,
    Device,
    InputShape,
    check_device,
    check_precision,
    choose_backends,
    parse_shape,
)
from common.errors import BadInput


def bench(
    arch: Arch,
    backends: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help=f"Comma-separated: {', '.join(BACKENDS)}. Default: the installed."
        ),
    ] = None,
    input_shape: InputShape = "1,96,96",
    batch_sizes: Annotated[str, typer.Option(metavar="N,…", help="Images at a time.")] = "1,8,64",
    precision: Annotated[
        str, typer.Option(metavar="NAMES", help="Comma-separated: float32, float64, bfloat16, tf32.")
    ] = "float32",
    mode: Annotated[
        str, typer.Option(metavar="NAMES", help="Comma-separated: train, infer.")
    ] = "train,infer",
    reference: Annotated[
        bool,
        typer.Option(
            "--reference", help="Measure each framework's own network beside ours, and onnxruntime."
        ),
    ] = False,
    compile: Compile = False,
    device: Device = "cpu",
    against: Annotated[
        Path | None,
        typer.Option(metavar="OLD.json", help="An earlier bench.json: say what has become slower since."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for bench.html and bench.json.")] = Path(
        "bench"
    ),
) -> None:
    """Measure speed, latency, memory and the time to the first result, in turns on this machine.

    Exits with 0, or with 1 if nothing could be measured or something is slower than in OLD.json beyond the
    spread of the rounds, 2 if the question makes no sense.
    """
    from common.bench import against as comparing
    from common.bench import report
    from common.bench.figures import Figures
    from common.bench.measure import MODES, Contender, Workload, measure
    from common.bench.onnx_reference import ONNXRUNTIME
    from common.files import output_folder
    from common.pages import progress

    chosen = choose_backends(backends)
    if any(backend.name == "oracle" for backend in chosen):
        raise BadInput(f"the oracle is there for proof, not for speed; give some of {', '.join(BACKENDS)}")
    shape = parse_shape(input_shape)
    sizes = parse_batch_sizes(batch_sizes)
    precisions = _names(precision)
    for name in precisions:
        check_precision(name)
    modes = _names(mode)
    for name in modes:
        if name not in MODES:
            raise BadInput(f"unknown mode {name!r}; give train, infer or train,infer")
    check_device(device)
    network = architecture(arch, in_channels=shape[0])
    network.check_input((1, *shape))
    workload = Workload(arch, network, shape, sizes, tuple(m for m in MODES if m in modes), device, compile)
    before = comparing.read(against, workload) if against else None
    folder = output_folder(out)
    if against and against.resolve() == (folder / "bench.json").resolve():
        raise BadInput(f"{against} would be written over; give --out another folder")

    contenders = [
        Contender(backend.name, name, is_reference)
        for backend in chosen
        if backend.installed
        for name in precisions
        for is_reference in ((False, True) if reference else (False,))
    ]
    if reference and "infer" in modes and "float32" in precisions and device == "cpu":
        chosen = [*chosen, ONNXRUNTIME]
        if ONNXRUNTIME.installed:
            contenders.append(Contender(ONNXRUNTIME.name, "float32", reference=True))
    size, batches = "×".join(map(str, shape)), ", ".join(map(str, sizes))
    with progress(f"Measuring [bold]{arch}[/] on images of {size} in batches of {batches}; {device}") as tell:
        result = Figures(measure(workload, contenders, tell), chosen)
    report.show(result)
    now = report.write(result, folder)
    good = result.measured
    if against and before and good:
        change = comparing.compare(before, comparing.Record.of(now))
        comparing.show(change, str(against))
        good = change.good
    raise typer.Exit(0 if good else 1)


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """ "64,1,8,8" → (1, 8, 64)."""
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        raise BadInput(f"batch sizes must be whole numbers from 1 up, such as 1,8,64, not {text!r}")
    return tuple(sizes)


def _names(text: str) -> list[str]:
    """ "train, infer" → ["train", "infer"], each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",")))

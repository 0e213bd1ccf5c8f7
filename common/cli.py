"""The command `resnet-tabs`: `compare`, `summary` and `download`; the others are in cli_*.py."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from common import cli_convert, cli_training, cli_verify
from common.architecture import architecture
from common.errors import BadInput, Stopped
from common.options import Arch, Backends, Device, InputShape, check_device, choose_backends, parse_shape

app = typer.Typer(
    help="One ResNet in MXNet, PyTorch, TensorFlow and JAX, proven to be the same network.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def compare(
    arch: Arch,
    backends: Backends = None,
    input_shape: InputShape = "1,96,96",
    dtype: Annotated[str, typer.Option(help="float64, float32 or both.")] = "both",
    steps: Annotated[int, typer.Option(help="SGD steps to take.")] = 20,
    device: Device = "cpu",
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
    from common import compare as comparing
    from common import report
    from common.data import batches, full, sample
    from common.files import output_folder
    from common.weights import initial_weights, load_checkpoint

    chosen = choose_backends(backends)
    shape = parse_shape(input_shape)
    if dtype not in ("float64", "float32", "both"):
        raise BadInput(f"unknown dtype {dtype!r}; give float64, float32 or both")
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

    # Eight images with labels the network knows.
    known = images.train_labels < network.num_classes
    x, y = next(
        batches(
            images.train_images[known],
            images.train_labels[known],
            batch_size=8,
            seed=0,
            size=shape[1:],
            channels=shape[0],
            dtype="float64",
        )
    )
    job = comparing.Job(network, weights, x, y, steps=steps, device=device)
    installed = [backend.name for backend in chosen if backend.installed]
    with report.progress("Comparing", arch, x, images.source) as tell:
        found = comparing.compare(
            job, installed, ["float64", "float32"] if dtype == "both" else [dtype], tell
        )
    result = report.Report(found, chosen, arch, images.source)
    report.show(result)
    report.write(result, folder)
    raise typer.Exit(0 if result.proven else 1)


@app.command()
def summary(
    arch: Arch,
    backends: Backends = None,
    input_shape: InputShape = "1,96,96",
    num_classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    depth: Annotated[str, typer.Option(help="A row for each of the stages, or of the blocks.")] = "stages",
) -> None:
    """Show what each part puts out, holds and costs, and what the backends measure, one column each.

    Exits with 1 if the columns differ.
    """
    from common import report
    from common.compare import summarise
    from common.summary import parts
    from common.workers import Worker

    chosen = choose_backends(backends)
    shape = parse_shape(input_shape)
    network = architecture(arch, in_channels=shape[0], num_classes=num_classes)
    shown = parts(network, (1, *shape), depth)
    names = [backend.name for backend in chosen if backend.installed]
    rows = {}
    for name in names:
        if name == "oracle":
            rows[name] = summarise(name, network, (1, *shape))
        else:
            with closing(Worker()) as worker:
                rows[name] = worker.run(summarise, name, network, (1, *shape))
    report.show_parts(arch, shown)
    report.show_backends(chosen)
    report.show_summary(rows)
    raise typer.Exit(0 if names and all(row == rows[names[0]] for row in rows.values()) else 1)


@app.command()
def download(
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to fetch into. Default: the user's cache.")
    ] = None,
) -> None:
    """Fetch the full Fashion-MNIST (30 MB) from its official mirror and check it."""
    from common import data

    typer.echo(f"Fashion-MNIST is in {data.download(to)}")


app.add_typer(cli_training.app)
app.add_typer(cli_convert.app)
app.add_typer(cli_verify.app)


def main() -> None:
    """The console script: what goes wrong is one line on standard error; bad input exits with 2."""
    try:
        exit_code = app(standalone_mode=False)
    except BadInput as error:
        _end(str(error), 2)
    except typer.TyperException as error:  # of the option parser
        _end(error.format_message(), 2)
    except Stopped as error:
        _end(str(error), error.exit_code)
    if exit_code == 130:  # what typer makes of KeyboardInterrupt
        _end("stopped at once", 130)
    sys.exit(exit_code)


def _end(line: str, exit_code: int) -> NoReturn:
    print(f"resnet-tabs: {line}", file=sys.stderr)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()

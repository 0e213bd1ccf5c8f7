"""The command `convert`."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import BadInput
from common.interop.families import FAMILIES
from common.pages import say
from common.processes.workers import quiet


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A checkpoint: a file of any framework, or a folder.")
    ],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="What to write: ours end in .safetensors.")],
    family: Annotated[
        str, typer.Option("--from", metavar="FAMILY", help=f"{', '.join(FAMILIES)}, or auto.")
    ] = "auto",
    to: Annotated[
        str | None,
        typer.Option(metavar="FAMILY", help="A family, or onnx: SOURCE is one of ours, DEST theirs."),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(metavar="N", help="Of ONNX's operators, with --to onnx. Default: 17.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(metavar="ARCH", help="Refuse any other network. Default: what SOURCE shows.")
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(help="Refuse any other number of classes; without a last layer, draw one of so many."),
    ] = None,
    in_channels: Annotated[int | None, typer.Option(help="Refuse any other number of channels.")] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Of several networks in SOURCE, the one under this: state_dict_ema, teacher."
        ),
    ] = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Hold it against the family's own network, by its own library.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite DEST.")] = False,
) -> None:
    """Take a checkpoint of another library's ResNet, or take one of ours there.

    The architecture is read off the tensors, and a tensor that has no place in it is an error. Exits with 0,
    with 1 if --prove finds another network, 2 if it cannot be done.
    """
    from common.interop import configs, files, onnx_file
    from common.interop import convert as converting
    from common.interop import prove as proving
    from common.training.runs import checkpoint_file
    from common.weights import load_checkpoint, save_checkpoint

    if to is not None and family != "auto":
        raise BadInput("give --from or --to, not both: one side is always this project's")
    if opset is not None and to != onnx_file.NAME:
        raise BadInput("--opset is for --to onnx; leave it out")
    opset = onnx_file.USUAL if opset is None else opset
    if to == onnx_file.NAME:
        onnx_file.check_request(dest, opset, prove)
    elif to in FAMILIES:
        files.check_suffix(dest, to)
    elif to is None and dest.suffix != ".safetensors":
        raise BadInput(f"{dest} must end in .safetensors, which is what is written")
    if to is not None:
        if key is not None:
            raise BadInput("--key is for other people's checkpoints; leave it out")
        source = checkpoint_file(source)
    if dest.exists() and not force:
        raise BadInput(f"{dest} exists; choose another name, or give --force to overwrite it")

    halves: list[str] = []
    metadata: dict[str, str] = {}
    with quiet():  # frameworks have much to say
        try:
            if to is not None:
                ours, weights = load_checkpoint(source)
                if to == onnx_file.NAME:
                    found = onnx_file.to_onnx(ours, weights)
                else:
                    found = converting.to_family(ours, weights, to)
            else:
                tensors, halves = files.read_tensors(source)
                config = configs.read_config(source, family)
                found = converting.from_family(tensors, family, config, num_classes, key)
                weights = found.tensors
                config = config.of(found.family)
            converting.check_network(found, arch, num_classes, in_channels)
            is_described = to is None and files.describes_model(source, found)
            if prove and to is None:
                with files.as_loaded(source, found) as theirs:
                    metadata["proof"] = proving.prove(found.family, found.arch, weights, theirs)
        except BadInput as error:
            if str(source) not in str(error):
                error.args = (f"{source}: {error}",)
            raise

        said = {"inference_only": found.inference_only, "rounded": found.rounded}
        metadata |= {name: text for name, text in said.items() if text}
        if to is None:
            metadata["source"] = found.family
            of_images = converting.images_of(found, config, source)
            metadata |= of_images.metadata
            assumed = list(of_images.assumed)
            if not (config.families or (is_described and prove)):
                assumed.insert(0, converting.UNSEEN)
            if assumed:
                metadata["assumed"] = "; ".join(assumed)
            save_checkpoint(dest, found.arch, found.tensors, metadata)
        else:
            carried = converting.carried(source)
            write: Any = partial(files.write_tensors, family=to, arch=found.arch, tensors=found.tensors)
            proof: Any = partial(proving.prove, to, found.arch, weights)
            if to == onnx_file.NAME:
                write = partial(onnx_file.write_onnx, converted=found, opset=opset)
                proof = partial(onnx_file.prove_onnx, arch=found.arch, weights=weights)
            if prove:  # before anything is overwritten
                with tempfile.TemporaryDirectory(prefix="resnet-tabs-") as folder:
                    trial = Path(folder) / dest.name
                    write(trial, metadata=metadata)
                    metadata["proof"] = proof(trial)
            write(dest, metadata=carried | metadata)

    precision = ", ".join(sorted({str(array.dtype) for array in found.tensors.values()}))
    say(f"{dest}: {converting.describe(found.arch)}; {precision}; {'to' if to else 'from'} {found.family}")
    if found.others and family == "auto" and not config.families:
        others = " or ".join(f"--from {name}" for name in found.others)
        say(f"named as {found.family} and {', '.join(found.others)} name; {others} says it is theirs")
    for line in found.said:
        say(line)
    if halves:
        say("bfloat16 is now float32, which holds it exactly")
    if not (found.rounded or found.inference_only):
        say("every number taken is kept, bit for bit; the biases that one side lacks are 0")
    if found.rounded:
        say(f"To rounding the same, because {found.rounded}")
    if found.inference_only:
        say(f"FOR INFERENCE ONLY: {found.inference_only}")
    if "proof" in metadata:
        say(f"Proven: {metadata['proof']}")
    if "assumed" in metadata:
        say(f"Taken for granted, because tensors do not show it: {metadata['assumed']}")
    if to is None:
        for line in (*config.lines, *of_images.lines):
            say(line)

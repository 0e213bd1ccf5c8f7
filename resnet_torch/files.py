"""Files of PyTorch: read without running what they hold, written as `load_state_dict` takes them."""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import BadInput
from common.files import write_atomically
from common.reading import brief, open_zip, shown


def read_tensors(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    """Name to array of a state dict, and the names that were bfloat16, which come as float32.

    A checkpoint of a training run may keep it under "state_dict" or "model".

    Raises:
        ValueError: if the file is damaged, holds more than tensors, or tensors that NumPy cannot hold.
    """
    try:
        if zipfile.is_zipfile(path):
            with open_zip(path, ratio=1):  # tensors are not packed
                pass
        with warnings.catch_warnings(action="ignore"):  # what becomes of the file is said in one line
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        holds = f"it asks to run {asked[1]}" if asked else "it is no pickle of tensors"
        raise BadInput(
            f"{path} is refused, and nothing in it was run: {holds}; save model.state_dict() as .safetensors"
        ) from None
    except Exception as error:  # in a damaged pickle anything can go wrong
        reason = (str(error).splitlines() or ["it ends too soon"])[0]
        raise BadInput(f"{path} is not a complete PyTorch file: {shown(reason, 200)}") from None

    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds {type(content).__name__}, not a state dict; save model.state_dict()")
    arrays, halves = {}, []
    room = 4 * path.stat().st_size + (64 << 20)  # a tensor may be a view, as large as it likes, of one number
    for name, tensor in content.items():
        if not (isinstance(name, str) and isinstance(tensor, torch.Tensor)):
            what = shown(name, 100) if isinstance(name, str) else brief(name)
            raise BadInput(f"{path} holds {what}, which is no tensor with a name; save model.state_dict()")
        room -= tensor.numel() * tensor.element_size()
        if room < 0:
            raise BadInput(f"{path} holds {brief(name)}, a view larger than the file; save it contiguous")
        if tensor.dtype == torch.bfloat16:
            halves.append(name)
            tensor = tensor.float()
        try:
            arrays[name] = tensor.detach().numpy()
        except (TypeError, RuntimeError):  # quantised, of eight bits, sparse
            kind = f"{tensor.dtype}, {tensor.layout}"
            raise BadInput(
                f"{path} is not of dense float16, bfloat16, float32 or float64: {name} ({kind})"
            ) from None
    return arrays, halves


def write_tensors(path: Path, tensors: Mapping[str, NDArray]) -> None:
    """Write a state dict, which `torch.load(weights_only=True)` reads.

    Raises:
        ValueError: if the file cannot be written.
    """
    file = io.BytesIO()
    arrays = {name: np.require(array, requirements=["C", "W"]) for name, array in tensors.items()}
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, file)
    write_atomically(path, [file.getbuffer()])

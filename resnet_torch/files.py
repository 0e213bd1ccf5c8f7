"""Files of PyTorch: read without running what they hold, written as `load_state_dict` takes them."""

import io
import pickle
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import BadInput
from common.files import write_atomically
from common.reading import brief, open_zip, shown

DEEPEST = 8  # dictionaries within each other
MOST_NAMES = 1 << 17  # in all of them: one may be in others many times
EXPORTED = {"archive_format", "serialized_exported_program.json"}  # in torch.export's archives

# Of what a pickle asks for by name, all that is given to it: what makes a tensor of data, and does no more.
TENSORS = {
    "torch": {"Size", "per_tensor_affine", "per_channel_affine"},
    "torch.storage": {"UntypedStorage"},
    "torch.serialization": {"_get_layout"},
    "torch._utils": {
        "_rebuild_parameter",
        "_rebuild_parameter_with_state",
        "_rebuild_qtensor",
        "_rebuild_sparse_tensor",
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_tensor_v3",
    },
}
# Parts of Python whose classes training runs keep beside tensors, as `argparse.Namespace`; and what is data
# although its name begins as a function's does.
DATA = {"argparse", "collections", "decimal", "enum", "fractions", "pathlib", "types", "uuid"}
SMALL = {
    "_codecs.encode",  # of bytes
    "collections.defaultdict",
    "collections.deque",
    "copyreg._reconstructor",  # of an instance
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
}
TYPES = {"bool", "bytearray", "complex", "dict", "float", "frozenset", "int", "list", "object", "set", "str"}


class Refused(Exception):
    """A pickle asks for what is not given to it."""


class StandIn:
    """What is no tensor, without its data: whatever a pickle does to it does nothing."""

    stands_for = ""

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def append(self, value: object) -> None:
        """As a list has it."""


class Careful(pickle._Unpickler):  # the one in Python, whose opcodes can be changed
    """Unpickles tensors, numbers and texts in dictionaries, lists and tuples; all else becomes stand-ins.

    It sets no attributes. Keys are texts and numbers: of tuples within tuples a hash takes for ever.

    Raises:
        Refused: where the pickle asks for a function.
    """

    # Of the class, though no stub says so: what is unpickled, and how more is.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    for _opcode in (
        *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),  # which hash, too
        *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),  # of any size
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4),
    ):
        del dispatch[_opcode[0]]

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle asks for by name, or what stands for it."""
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # of Python 2
        path = f"{module}.{name}"
        if path == "collections.OrderedDict":
            return _dictionary
        if path == "torch._tensor._rebuild_from_type_v2":
            return _without_attributes
        if name in TENSORS.get(module, ()) or (module == "torch" and _is_dtype(name)):
            return super().find_class(module, name)
        root, last = module.partition(".")[0], name.rpartition(".")[2]
        if module == "builtins":
            is_data = name in TYPES
        elif root in sys.stdlib_module_names:
            is_data = path in SMALL or (root in DATA and last[:1].isupper())
        else:
            is_data = root in ("numpy", "torch") or last[:1].isupper()
        if not is_data:
            raise Refused(f"it asks to run {shown(path, 100)}")
        return type("StandIn", (StandIn,), {"stands_for": path})

    def load_build(self) -> None:
        """Leave the object as it is."""
        self.stack.pop()

    def load_dict(self) -> None:
        """A dictionary of keys and values by turns."""
        items = self.pop_mark()
        self.append(_dictionary(zip(items[::2], items[1::2], strict=True)))

    def load_setitem(self) -> None:
        """One more entry."""
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def load_setitems(self) -> None:
        """More entries, keys and values by turns."""
        self._put(self.pop_mark())

    def _put(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):  # nothing is put into a stand-in
            self.stack[-1].update(_dictionary(zip(items[::2], items[1::2], strict=True)))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


def _dictionary(pairs: Iterable[tuple[Any, Any]] = ()) -> dict[Any, Any]:
    return {key: value for key, value in pairs if isinstance(key, str | int | float | bytes)}


def _without_attributes(make: Callable[..., Any], kind: object, args: Iterable[Any], state: object) -> Any:
    """A tensor that has attributes of Python's."""
    return make(*args)


def _is_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name, None), torch.dtype)


# What `torch.load` takes in place of the module `pickle`.
CAREFUL = SimpleNamespace(
    __name__="pickle", Unpickler=Careful, load=lambda file, **options: Careful(file, **options).load()
)


def read_tensors(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    """Name to array of what a file holds, and the names that were bfloat16, which come as float32.

    A state dict within the checkpoint of a training run is under "state_dict.conv1.weight". What is no tensor
    becomes nothing, and nothing that the file holds is run.

    Raises:
        ValueError: if the file is damaged, asks to run something, or holds no tensors, or such that NumPy
            cannot hold.
    """
    try:
        with path.open("rb") as file:
            is_archive = file.read(2) == b"PK"  # as PyTorch tells
        if is_archive:
            with open_zip(path, ratio=1):  # tensors are not packed
                _check_is_pickle(path, torch._C.PyTorchFileReader(str(path)).get_all_records())
        with warnings.catch_warnings(action="ignore"):  # what becomes of the file is said in one line
            # Trap: by itself, `torch.load` stops at the first thing that is no tensor.
            content = torch.load(path, map_location="cpu", pickle_module=CAREFUL, weights_only=False)
    except Refused as error:
        raise BadInput(
            f"{path} is refused, and nothing in it was run: {error}; save model.state_dict() as .safetensors"
        ) from None
    except BadInput:
        raise
    except Exception as error:  # in a damaged pickle anything can go wrong
        said = "it is no pickle" if isinstance(error, KeyError) else str(error)  # of an opcode
        reason = (said.splitlines() or ["it ends too soon"])[0]
        raise BadInput(f"{path} is not a complete PyTorch file: {shown(reason, 200)}") from None

    arrays, halves = {}, []
    room = 4 * path.stat().st_size + (64 << 20)  # a tensor may be a view, as large as it likes, of one number
    for number, (name, tensor) in enumerate(_entries(content)):
        if number == MOST_NAMES:
            raise BadInput(f"{path} holds more than {MOST_NAMES:,} names; save model.state_dict()")
        if not isinstance(tensor, torch.Tensor):
            continue
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
                f"{path} is not of dense float16, bfloat16, float32 or float64: {shown(name, 100)} ({kind})"
            ) from None
    if not (arrays or isinstance(content, dict)):
        kind = getattr(type(content), "stands_for", type(content).__name__)
        raise BadInput(f"{path} holds {shown(kind, 100)}, not a state dict; save model.state_dict()")
    return arrays, halves


def _check_is_pickle(path: Path, members: Collection[str]) -> None:
    """Raise `ValueError` for the archives of programs, which PyTorch would run."""
    names = {member.rpartition("/")[2] for member in members}
    for marks, what in (({"constants.pkl"}, "TorchScript"), (EXPORTED, "torch.export")):
        if names & marks:
            raise BadInput(f"{path} is a program of {what}, which is not run; save model.state_dict()")


def _entries(content: object, at: tuple[str, ...] = ()) -> Iterator[tuple[str, object]]:
    """What is in dictionaries within each other, and its names, of all keys from the outermost on."""
    if isinstance(content, dict) and len(at) < DEEPEST:
        for key, value in content.items():
            name = (*at, str(key))
            yield ".".join(name), value
            yield from _entries(value, name)


def write_tensors(path: Path, tensors: Mapping[str, NDArray]) -> None:
    """Write a state dict, which `torch.load(weights_only=True)` reads.

    Raises:
        ValueError: if the file cannot be written.
    """
    file = io.BytesIO()
    arrays = {name: np.require(array, requirements=["C", "W"]) for name, array in tensors.items()}
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, file)
    write_atomically(path, [file.getbuffer()])

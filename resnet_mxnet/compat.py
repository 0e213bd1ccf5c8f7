"""MXNet 1.9.1 on today's NumPy: give it back the names NumPy has removed, and whole numbers as they were.

NumPy has the names while MXNet is imported, and afterwards they are MXNet's alone: NumPy is to everybody else
what it was. The NumPy interface of MXNet (`mxnet.np`), which the d2l chapter uses, is switched on.

A build for GPUs, such as mxnet-cu112, gets CUDA 11 from NVIDIA's packages.
"""

import ctypes
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import scipy.sparse  # noqa: F401  (MXNet imports it, and it must not see the borrowed names)

from common.errors import BadInput

# In the order in which they need each other.
_CUDA = {
    "cuda_runtime": "libcudart.so.11.0",
    "nvtx": "libnvToolsExt.so.1",
    "cublas": "libcublas.so.11",
    "cufft": "libcufft.so.10",
    "cusolver": "libcusolver.so.11",
    "curand": "libcurand.so.10",
    "cuda_nvrtc": "libnvrtc.so.11.2",
    "nccl": "libnccl.so.2",
    "cudnn": "libcudnn.so.8",
}


def _load_cuda() -> None:
    """Trap: MXNet's library finds these only if they are loaded before it."""
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia and nvidia.submodule_search_locations) or ():
        files = [Path(folder, package, "lib", name) for package, name in _CUDA.items()]
        if all(file.exists() for file in files):
            for file in files:
                ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)
            # Trap: on a GPU, float32 products are rounded to TF32, and MXNet has no switch of its own.
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")


def _gone(*args: object, **kwargs: object) -> None:
    raise NotImplementedError("NumPy removed its financial functions; use the package numpy-financial")


_REMOVED = {
    "int": int,
    "float": float,
    "object": object,
    "float_": np.float64,
    "PZERO": 0.0,
    "NZERO": -0.0,
    "PINF": np.inf,
    "Inf": np.inf,
    "Infinity": np.inf,
    "infty": np.inf,
    "NINF": -np.inf,
    "NaN": np.nan,
    "NAN": np.nan,
    "alltrue": np.all,
    "sometrue": np.any,
    "product": np.prod,
    "cumproduct": np.cumprod,
    "in1d": np.isin,
    "msort": lambda a: np.sort(a, axis=0),
    "round_": np.round,
    "row_stack": np.vstack,
    "trapz": np.trapezoid,
    "compat": SimpleNamespace(basestring=str),
    **dict.fromkeys(("fv", "ipmt", "irr", "mirr", "nper", "npv", "pmt", "ppmt", "pv", "rate"), _gone),
}


class _IsText(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, str)


class _Text(metaclass=_IsText):
    """Python's `str`, to MXNet.

    Trap: MXNet hands its operators' arguments on as text, and NumPy 2 writes (4,) as "(np.int64(4),)".
    """

    def __new__(cls, value: object) -> str:
        text = str(value)
        return str(_plain(value)) if "np." in text else text


def _plain(value: Any) -> Any:
    """Python's numbers for NumPy's, in tuples and lists too."""
    if isinstance(value, (tuple, list)):
        return (list if isinstance(value, list) else tuple)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _give_to_mxnet() -> None:
    """The names and `_Text` to MXNet's modules, which look them up as they run."""
    own = ModuleType("numpy")
    vars(own).update(vars(np))
    modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "mxnet"}
    for module in modules.values():
        for name in [name for name, value in vars(module).items() if value is np]:
            setattr(module, name, own)
    for name in ("_ctypes.ndarray", "_ctypes.symbol", "symbol.symbol", "io.io", "kvstore.base"):
        vars(modules[f"mxnet.{name}"])["str"] = _Text
    _give_to_gluons_files(modules)


def _give_to_gluons_files(modules: dict[str, ModuleType]) -> None:
    """Trap: `save_parameters` knows MXNet's NumPy interface; `collect_params().save` and `load` do not."""
    mx, block = modules["mxnet"], vars(modules["mxnet.gluon.block"])
    load_json = block["load_json"]

    def load_symbol(text: str) -> Any:
        symbol = load_json(text)
        return symbol.as_np_ndarray() if mx.npx.is_np_array() else symbol

    def file_function(name: str) -> Callable[..., Any]:
        return lambda *arguments: getattr(mx.npx if mx.npx.is_np_array() else mx.nd, name)(*arguments)

    arrays = ModuleType("ndarray")
    vars(arrays).update(vars(mx.nd), save=file_function("save"), load=file_function("load"))
    vars(modules["mxnet.gluon.parameter"])["ndarray"] = arrays
    block["load_json"] = load_symbol


# Trap: MXNet halves the OpenMP threads of the whole process, PyTorch's too, unless it is told a number.
if "OMP_NUM_THREADS" not in os.environ:
    _cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("MXNET_OMP_MAX_THREADS", str(_cores))

# Trap: the OpenBLAS in MXNet's wheel takes a CPU younger than itself for one of 2004: float64 is slow.
_cpu = Path("/proc/cpuinfo")
_can = {"avx2", "fma"} <= set(_cpu.read_text().split() if _cpu.exists() else ())
_tell = _can and "OPENBLAS_CORETYPE" not in os.environ
if _tell:
    os.environ["OPENBLAS_CORETYPE"] = "Haswell"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # NumPy warns about the very names that are lent
    _lent = {name: value for name, value in _REMOVED.items() if not hasattr(np, name)}
_load_cuda()
for _name, _value in _lent.items():
    setattr(np, _name, _value)
try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=SyntaxWarning)
        importlib.import_module("mxnet").npx.set_np()
    _give_to_mxnet()
except OSError as error:
    raise BadInput(
        f"MXNet's library does not load ({error}); a build for GPUs needs NVIDIA's driver and "
        'pip install "resnet-tabs[mxnet-gpu]"'
    ) from None
finally:
    for _name in _lent:
        delattr(np, _name)
    if _tell:
        del os.environ["OPENBLAS_CORETYPE"]

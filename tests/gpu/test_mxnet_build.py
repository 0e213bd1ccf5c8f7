"""MXNet's build for GPUs on the CPU: its library loads, and is the same network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = ["tests/test_backends.py", "tests/test_mxnet.py", "tests/test_checkpoints.py"]


@pytest.fixture
def library(backends: list[str]) -> Path:
    """MXNet's own library."""
    spec = find_spec("mxnet") if "mxnet" in backends else None
    if not (spec and spec.origin):
        pytest.skip("MXNet is not under test")
    path = Path(spec.origin).with_name("libmxnet.so")
    if b"libcudart" not in path.read_bytes():
        pytest.skip("this MXNet is a build for CPUs; install mxnet-cu112")
    return path


def test_the_suite_passes_on_the_cpu(library: Path, tmp_path: Path) -> None:
    """A driver that knows of no device stands in for NVIDIA's, which is only with a GPU."""
    undefined = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True)
    names = {"cuInit", "cuDeviceGetCount", "cuDriverGetVersion"} | set(
        re.findall(r"\bcu[A-Z]\w+", undefined.stdout)
    )
    no_device = "".join(f"int {name}(void) {{ return 100; }}\n" for name in sorted(names))
    (tmp_path / "driver.c").write_text(no_device)
    driver = tmp_path / "libcuda.so.1"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", driver, tmp_path / "driver.c"],
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--backends=mxnet", *SUITE],
        cwd=ROOT,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

"""Output that cannot be written, or not in the terminal's encoding, ends nothing but itself."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO
from unittest.mock import patch

import numpy as np
import pytest

from common import Architecture, cli, initial_weights, save_checkpoint
from common.data import sample
from common.pages import Console
from common.training.runs import is_finished
from tests.cli.commands import SHORT, command

pytestmark = pytest.mark.usefixtures("no_full_set")

ORACLE = ["--backend", "oracle"]
FULL = "/dev/full"
LOST = "resnet-tabs: not all could be printed: No space left on device\n"
has_full = pytest.mark.skipif(not Path(FULL).exists(), reason="only Linux has /dev/full")


def open_text(file: str | int, encoding: str = "utf-8") -> TextIO:
    """A stream as Python opens standard output."""
    return open(file, "w", encoding=encoding, buffering=1)


def closed_pipe() -> TextIO:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return open_text(writer)


def run_to(stdout: TextIO, *arguments: object) -> tuple[int, str]:
    """The exit code of a command that prints on this stream, and what it says on standard error."""
    err = io.StringIO()
    with (
        patch.object(sys, "argv", ["resnet-tabs", *map(str, arguments)]),
        redirect_stdout(stdout),
        redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        cli.main()
    return int(stop.value.code or 0), err.getvalue()


@pytest.fixture
def network(tmp_path: Path) -> Path:
    arch = Architecture(stages=((1, 4),), stem_channels=4)
    save_checkpoint(tmp_path / "network.safetensors", arch, initial_weights(arch))
    np.save(tmp_path / "x.npy", sample().test_images[:3, None] / 255)
    return tmp_path / "network.safetensors"


@pytest.mark.parametrize("where", [pytest.param("full", marks=has_full), "closed"])
def test_a_run_whose_output_cannot_be_written_is_whole(tmp_path: Path, small: str, where: str) -> None:
    with open_text(FULL) if where == "full" else closed_pipe() as stdout:
        found = run_to(stdout, "train", small, *ORACLE, *SHORT, "--epochs", "2", "--out", tmp_path / "run")
    assert found == (0, LOST if where == "full" else "")
    assert is_finished(tmp_path / "run")


@has_full
@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "{network}", "{folder}/x.npy", *ORACLE],
        ["evaluate", "{network}", *ORACLE, "--limit-val", "8"],
        ["summary", "resnet18", "--backends", "oracle"],
        ["predict", "--help"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_results_that_cannot_be_printed_are_a_line_and_exit_code_1(
    network: Path, arguments: list[str]
) -> None:
    given = [argument.format(network=network, folder=network.parent) for argument in arguments]
    with open_text(FULL) as stdout:
        assert run_to(stdout, *given) == (
            1,
            "resnet-tabs: not all could be printed: No space left on device\n",
        )
    with closed_pipe() as stdout:
        assert run_to(stdout, *given) == (0, "")


@has_full
def test_what_goes_wrong_keeps_its_own_line_and_exit_code(tmp_path: Path) -> None:
    with open_text(FULL) as stdout:
        code, said = run_to(stdout, "train", "resnet81", "--out", tmp_path / "run")
    assert code == 2 and said.startswith("resnet-tabs: unknown architecture 'resnet81'")


def test_ascii_and_names_that_are_no_unicode_are_shown_with_escapes(tmp_path: Path, small: str) -> None:
    out = os.fsdecode(os.fsencode(tmp_path / "r") + b"\xffn")
    with open_text(str(tmp_path / "said"), "ascii") as stdout:
        assert run_to(stdout, "train", small, *ORACLE, *SHORT, "--out", out) == (0, "")
    said = (tmp_path / "said").read_bytes().decode("ascii")
    assert r"at 28\xd728 from" in said and r"r\udcffn has the weights" in said
    assert is_finished(out)


def test_lines_of_a_run_in_a_script_are_escaped_as_well(tmp_path: Path) -> None:
    """Where nobody has replaced standard output: in a notebook, in somebody's program."""
    with open_text(str(tmp_path / "said"), "ascii") as stdout, redirect_stdout(stdout):
        Console().say("28×28 \udcff")
    assert (tmp_path / "said").read_text("ascii") == "28\\xd728 \\udcff\n"
    stdout = closed_pipe()
    with redirect_stdout(stdout):
        Console().say("a line")
    with suppress(BrokenPipeError):  # it still has the line
        stdout.close()


@pytest.mark.deep
@pytest.mark.parametrize("descriptors", [(1,), (0, 1, 2)])
def test_a_command_without_standard_output_runs(tmp_path: Path, descriptors: tuple[int, ...]) -> None:
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    arguments = ["train", "resnet18", *ORACLE, *SHORT, "--limit-train", "8", "--out", tmp_path / "run"]
    done = subprocess.run(command(*arguments), preexec_fn=close, stderr=subprocess.PIPE, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    assert is_finished(tmp_path / "run")


@pytest.mark.deep
def test_a_pipe_that_is_closed_costs_no_epoch(tmp_path: Path) -> None:
    arguments = ["train", "resnet18", *ORACLE, *SHORT, "--limit-train", "8", "--out", tmp_path / "run"]
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stdout.readline()
    process.stdout.close()
    assert process.stderr and process.stderr.read() == b""
    assert process.wait(timeout=300) == 0
    assert is_finished(tmp_path / "run")

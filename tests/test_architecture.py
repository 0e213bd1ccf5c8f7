"""What a network is: names and shapes spelled out, and every description that cannot be built refused."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.architecture import ZOO, Architecture, Block, architecture
from common.backend import find_backend, load_backend
from common.errors import BadInput
from common.summary import parts
from common.weights import is_statistic
from tests.helpers import one_line

RESIDUAL = Architecture(stages=((1, 4), (2, 6)), in_channels=3, num_classes=5, stem_channels=4)
RESNEXT = Architecture(
    stages=((1, 8), (2, 12)),
    block="resnext",
    groups=(2, 3),
    bot_mul=0.5,
    in_channels=1,
    num_classes=2,
    stem_channels=6,
)


def weight_and_bias(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{kind}": (channels,) for kind in kinds}


def test_parameters_of_a_residual_network() -> None:
    expected = {
        **weight_and_bias("b1.conv", 4, 3, 7, 7),
        **norm("b1.bn", 4),
        **weight_and_bias("b2.0.conv1", 4, 4, 3, 3),
        **norm("b2.0.bn1", 4),
        **weight_and_bias("b2.0.conv2", 4, 4, 3, 3),
        **norm("b2.0.bn2", 4),
        **weight_and_bias("b3.0.conv1", 6, 4, 3, 3),
        **norm("b3.0.bn1", 6),
        **weight_and_bias("b3.0.conv2", 6, 6, 3, 3),
        **norm("b3.0.bn2", 6),
        **weight_and_bias("b3.0.conv3", 6, 4, 1, 1),
        **weight_and_bias("b3.1.conv1", 6, 6, 3, 3),
        **norm("b3.1.bn1", 6),
        **weight_and_bias("b3.1.conv2", 6, 6, 3, 3),
        **norm("b3.1.bn2", 6),
        **weight_and_bias("last", 5, 6),
    }
    assert list(RESIDUAL.parameter_shapes().items()) == list(expected.items())
    assert RESIDUAL.stage_names() == ["b1", "b2", "b3", "last"]


def test_parameters_of_a_resnext_network() -> None:
    expected = {
        **weight_and_bias("b1.conv", 6, 1, 7, 7),
        **norm("b1.bn", 6),
        **weight_and_bias("b2.0.conv1", 4, 6, 1, 1),
        **norm("b2.0.bn1", 4),
        **weight_and_bias("b2.0.conv2", 4, 2, 3, 3),
        **norm("b2.0.bn2", 4),
        **weight_and_bias("b2.0.conv3", 8, 4, 1, 1),
        **norm("b2.0.bn3", 8),
        **weight_and_bias("b2.0.conv4", 8, 6, 1, 1),
        **norm("b2.0.bn4", 8),
        **weight_and_bias("b3.0.conv1", 6, 8, 1, 1),
        **norm("b3.0.bn1", 6),
        **weight_and_bias("b3.0.conv2", 6, 3, 3, 3),
        **norm("b3.0.bn2", 6),
        **weight_and_bias("b3.0.conv3", 12, 6, 1, 1),
        **norm("b3.0.bn3", 12),
        **weight_and_bias("b3.0.conv4", 12, 8, 1, 1),
        **norm("b3.0.bn4", 12),
        **weight_and_bias("b3.1.conv1", 6, 12, 1, 1),
        **norm("b3.1.bn1", 6),
        **weight_and_bias("b3.1.conv2", 6, 3, 3, 3),
        **norm("b3.1.bn2", 6),
        **weight_and_bias("b3.1.conv3", 12, 6, 1, 1),
        **norm("b3.1.bn3", 12),
        **weight_and_bias("last", 2, 12),
    }
    assert list(RESNEXT.parameter_shapes().items()) == list(expected.items())


def test_resnet18_is_the_published_one() -> None:
    arch = architecture("resnet18", in_channels=1, num_classes=10)
    assert arch.stages == ((2, 64), (2, 128), (2, 256), (2, 512))
    assert (arch.block, arch.stem_channels, arch.smallest_input) == ("residual", 64, 17)
    assert arch.stage_names() == ["b1", "b2", "b3", "b4", "b5", "last"]
    shapes = arch.parameter_shapes()
    trained = sum(int(np.prod(shape)) for name, shape in shapes.items() if not is_statistic(name))
    assert trained == 11_178_378
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == trained + 2 * 3_904
    colour = architecture("resnet18", in_channels=3, num_classes=1000).parameter_shapes()
    assert colour["b1.conv.weight"] == (64, 3, 7, 7) and colour["last.weight"] == (1000, 512)


# Parameters and 10⁹ multiply-accumulates at 3×224×224 as torchvision 0.28 documents them with its weights.
PUBLISHED = {
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 4.089),
    "resnet101": (44_549_160, 7.801),
    "resnet152": (60_192_808, 11.514),
    "resnext50_32x4d": (25_028_904, 4.23),
    "resnext101_32x8d": (88_791_336, 16.414),
    "resnext101_64x4d": (83_455_272, 15.46),
    "wide_resnet50_2": (68_883_240, 11.398),
    "wide_resnet101_2": (126_886_696, 22.753),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_zoo_is_the_published_one(name: str) -> None:
    """Ours has the chapter's bias in every convolution, and no batch norm on the shortcut of `Residual`."""
    parameters, macs = PUBLISHED[name]
    arch = architecture(name, in_channels=3, num_classes=1000)
    shapes = arch.parameter_shapes()
    biases = sum(shape[0] for key, shape in shapes.items() if ".conv" in key and key.endswith(".bias"))
    shortcuts = [block for stage in arch.blocks() for block in stage if block.use_1x1conv]
    missing = sum(2 * block.num_channels for block in shortcuts) if arch.block == "residual" else 0
    rows = parts(arch, (1, 3, 224, 224))
    assert sum(part.row.parameters for part in rows) - biases + missing == parameters
    assert round(sum(part.macs for part in rows) / 1e9, 3) == macs
    assert [part.row.output_shape[2:] for part in rows[:-1]] == [
        (56, 56),
        (56, 56),
        (28, 28),
        (14, 14),
        (7, 7),
    ]


@pytest.mark.parametrize("name", [name for name in ZOO if name not in PUBLISHED])
def test_v1_is_the_published_one_but_for_its_shortcuts_and_strides(name: str) -> None:
    arch, usual = (architecture(each, 3, 1000) for each in (name, name.removesuffix("_v1")))
    ours, theirs = (parts(each, (1, 3, 224, 224), "blocks") for each in (arch, usual))
    parameters = sum(part.row.parameters for part in ours) - sum(part.row.parameters for part in theirs)
    saved = sum(part.macs for part in theirs) - sum(part.macs for part in ours)
    if arch.block == "residual":  # torchvision's, with a norm of two parameters a channel on three shortcuts
        assert (parameters, saved) == (2 * (128 + 256 + 512), 0)
    else:  # three 1×1 convolutions, of 56×56, 28×28 and 14×14, see a quarter of the pixels
        assert parameters == 0
        assert saved == 0.75 * (56**2 * 256 * 128 + 28**2 * 512 * 256 + 14**2 * 1024 * 512)


@pytest.mark.parametrize("arch", [RESIDUAL, RESNEXT], ids=["residual", "resnext"])
@pytest.mark.parametrize("size", [(32, 32), (33, 46)])
def test_parts_are_what_the_oracle_measures(arch: Architecture, size: tuple[int, int]) -> None:
    shape = (2, arch.in_channels, *size)
    stages, blocks = parts(arch, shape), parts(arch, shape, "blocks")
    assert [part.row for part in stages] == load_backend("oracle").build(arch).summary(shape)
    assert [part.row.name for part in blocks] == ["b1", "b2.0", "b3.0", "b3.1", "last"]
    for total in (lambda part: part.row.parameters, lambda part: part.macs):
        assert sum(map(total, blocks)) == sum(map(total, stages))


def test_multiply_accumulates_by_hand() -> None:
    assert [part.macs for part in parts(RESNEXT, (1, 1, 32, 32), "blocks")] == [
        16 * 16 * 6 * 49,
        8 * 8 * (4 * 6 + 4 * 2 * 9 + 8 * 4 + 8 * 6),
        8 * 8 * 6 * 8 + 4 * 4 * (6 * 3 * 9 + 12 * 6 + 12 * 8),  # the stride is on the second convolution
        4 * 4 * (6 * 12 + 6 * 3 * 9 + 12 * 6),
        2 * 12,
    ]


def test_an_unknown_depth_is_refused_in_one_line() -> None:
    with pytest.raises(BadInput) as error:
        parts(RESIDUAL, (1, 3, 32, 32), "layers")
    one_line(error, "unknown depth 'layers'; give stages or blocks")


def test_networks_are_alike_whatever_their_channels_and_classes() -> None:
    assert architecture("resnet50", 3, 1000).is_like(architecture("resnet50"))
    assert not architecture("resnet50").is_like(architecture("resnext50_32x4d"))
    assert not architecture("resnet50").is_like(architecture("resnet101"))


@pytest.mark.parametrize(
    "axes",
    [
        {"stride_on": "1x1"},
        {"epsilon": 1e-3},
        {"padding": "same"},
        {"stem_padding": "same"},
        {"decay": 0.99},
    ],
)
def test_networks_of_one_shape_are_not_alike_if_they_compute_something_else(axes: dict[str, Any]) -> None:
    assert not replace(RESNEXT, **axes).is_like(RESNEXT)
    assert replace(RESNEXT, **axes).parameter_shapes() == RESNEXT.parameter_shapes()


def test_a_shortcut_norm_is_named_after_its_convolution() -> None:
    normed = replace(RESIDUAL, shortcut_norm=True)
    assert not normed.is_like(RESIDUAL)
    names = list(normed.parameter_shapes())
    new = [name for name in names if name not in RESIDUAL.parameter_shapes()]
    assert new == [f"b3.0.bn3.{kind}" for kind in ("weight", "bias", "running_mean", "running_var")]
    assert names[names.index(new[0]) - 1] == "b3.0.conv3.bias"


def test_only_the_first_block_of_every_stage_but_the_first_has_stride_2() -> None:
    arch = Architecture(stages=((3, 4), (3, 4), (1, 4)), stem_channels=4)
    strides = {block.name: block.strides for stage in arch.blocks() for block in stage}
    assert strides == {"b2.0": 1, "b2.1": 1, "b2.2": 1, "b3.0": 2, "b3.1": 1, "b3.2": 1, "b4.0": 2}


@pytest.mark.parametrize(
    ("in_channels", "strides", "expected"), [(4, 1, False), (5, 1, True), (4, 2, True), (5, 2, True)]
)
def test_a_block_has_its_1x1_convolution_exactly_when_the_shape_changes(
    in_channels: int, strides: int, expected: bool
) -> None:
    block = Block("b2.0", in_channels, 4, strides, None, 1.0)
    assert block.use_1x1conv is expected
    assert block.options == {
        "num_channels": 4,
        "use_1x1conv": expected,
        "strides": strides,
        "shortcut_norm": False,
        "epsilon": 1e-5,
        "padding": "symmetric",
        "decay": 0.9,
    }


def test_groups_are_widths_one_for_all_stages_or_one_each() -> None:
    one = Architecture(stages=((1, 8), (1, 12)), block="resnext", groups=4)
    assert one == Architecture(stages=((1, 8), (1, 12)), block="resnext", groups=(4, 4))
    assert one.blocks()[1][0].options == {
        "num_channels": 12,
        "groups": 4,
        "bot_mul": 1.0,
        "use_1x1conv": True,
        "strides": 2,
        "stride_on": "3x3",
        "epsilon": 1e-5,
        "padding": "symmetric",
        "decay": 0.9,
    }
    each = Architecture(stages=((1, 8), (1, 12)), block="resnext", groups=[2, 3])  # type: ignore[arg-type]
    assert [stage[0].groups for stage in each.blocks()] == [2, 3]


def test_bottleneck_channels_are_rounded_as_in_the_chapter() -> None:
    assert Block("b2.0", 8, 5, 1, 1, 0.5).bot_channels == 2  # int(round(2.5)) in Python 3
    assert Block("b2.0", 8, 7, 1, 1, 0.5).bot_channels == 4


@pytest.mark.parametrize("stages", [[[1, 4], [2, 6]], ((np.int64(1), 4), (2, 6)), iter([(1, 4), (2, 6)])])
def test_stages_may_come_in_any_sequence(stages: Any) -> None:
    assert Architecture(stages=stages, in_channels=3, num_classes=5, stem_channels=4) == RESIDUAL


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no stages": ({"stages": ()}, "stages"),
    "stages not pairs": ({"stages": (1, 64)}, "pairs (num_residuals, num_channels)"),
    "a stage of three": ({"stages": ((1, 64, 2),)}, "pairs (num_residuals, num_channels)"),
    "a fraction of a block": ({"stages": ((1.5, 64),)}, "whole numbers"),
    "no blocks in a stage": ({"stages": ((0, 64),)}, "from 1 up"),
    "no channels": ({"stages": ((1, 0),)}, "from 1 up"),
    "stages missing": ({"stages": None}, "pairs (num_residuals, num_channels)"),
    "no input channels": ({"in_channels": 0}, "in_channels must be a whole number from 1 up, not 0"),
    "negative classes": ({"num_classes": -1}, "num_classes"),
    "classes in words": ({"num_classes": "ten"}, "num_classes"),
    "half a stem channel": ({"stem_channels": 0.5}, "stem_channels"),
    "unknown block": ({"block": "bottleneck"}, "'residual' or 'resnext', not 'bottleneck'"),
    "groups on residual": ({"groups": 4}, "belong to block='resnext'"),
    "bot_mul on residual": ({"bot_mul": 0.5}, "belong to block='resnext'"),
    "no groups": ({"block": "resnext"}, "needs groups"),
    "groups of width 0": ({"block": "resnext", "groups": 0}, "needs groups"),
    "groups for other stages": ({"block": "resnext", "groups": (4, 4, 4)}, "each of the 2 stages"),
    "groups in words": ({"block": "resnext", "groups": "44"}, "needs groups"),
    "bot_mul 0": ({"block": "resnext", "groups": 4, "bot_mul": 0}, "bot_mul must be a number above 0"),
    "bot_mul NaN": ({"block": "resnext", "groups": 4, "bot_mul": float("nan")}, "bot_mul"),
    "bot_mul in words": ({"block": "resnext", "groups": 4, "bot_mul": "1"}, "bot_mul"),
    "not divisible": ({"block": "resnext", "groups": (4, 5)}, "= 12 does not divide into groups of width 5"),
    "stride_on on residual": ({"stride_on": "1x1"}, "belong to block='resnext'"),
    "a stride elsewhere": (
        {"block": "resnext", "groups": 4, "stride_on": "5x5"},
        "'3x3' or '1x1', not '5x5'",
    ),
    "shortcut_norm on resnext": (
        {"block": "resnext", "groups": 4, "shortcut_norm": True},
        "shortcut_norm belongs to block='residual'",
    ),
    "shortcut_norm in words": ({"shortcut_norm": "yes"}, "shortcut_norm must be True or False, not 'yes'"),
    "unknown padding": ({"padding": "SAME"}, "padding must be 'symmetric' or 'same', not 'SAME'"),
    "unknown stem_padding": ({"stem_padding": 3}, "stem_padding must be 'symmetric' or 'same', not 3"),
    "epsilon 0": ({"epsilon": 0}, "epsilon must be a number above 0, not 0"),
    "epsilon NaN": ({"epsilon": float("nan")}, "epsilon must be a number above 0, not nan"),
    "epsilon in words": ({"epsilon": "1e-5"}, "epsilon must be a number above 0, not '1e-5'"),
    "decay 1": ({"decay": 1}, "decay must be a number from 0 up and below 1, not 1"),
    "decay below 0": ({"decay": -0.1}, "decay must be a number from 0 up and below 1, not -0.1"),
    "decay True": ({"decay": True}, "decay must be a number from 0 up and below 1, not True"),
    "no bottleneck left": ({"block": "resnext", "groups": 1, "bot_mul": 0.01}, "= 0 does not divide"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_network_that_cannot_be_built_is_refused_in_one_line(case: str) -> None:
    options, words = BAD[case]
    with pytest.raises(ValueError) as error:
        Architecture(**{"stages": ((1, 8), (1, 12)), **options})
    one_line(error, words)


AXES = {"epsilon": 1e-3, "padding": "same", "stem_padding": "same", "decay": 0.99}


@pytest.mark.parametrize(
    "arch",
    [
        RESIDUAL,
        RESNEXT,
        architecture("resnet18"),
        replace(RESIDUAL, shortcut_norm=True, **AXES),
        replace(RESNEXT, stride_on="1x1", **AXES),
    ],
    ids=["residual", "resnext", "18", "residual axes", "resnext axes"],
)
def test_json_round_trip(arch: Architecture) -> None:
    assert Architecture.from_json(arch.to_json()) == arch
    assert hash(Architecture.from_json(arch.to_json())) == hash(arch)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[1]", "{}", '{"stages": [[1, 4]], "depth": 3}', '{"stages": [[0, 4]]}']
)
def test_json_of_something_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError) as error:
        Architecture.from_json(text)
    one_line(error, "not the description of an architecture")


ABSURD = {
    "blocks": '{"stages": [[1000000000, 4]]}',
    "stages": f'{{"stages": [{"[1, 4], " * 200_000}[1, 4]]}}',
    "channels": '{"stages": [[1, 1000000000]]}',
    "channels of thousands of digits": f'{{"stages": [[1, 1{"0" * 4000}]]}}',
    "parameters": '{"stages": [[9000, 1000000]]}',
    "classes": '{"stages": [[1, 4]], "num_classes": 1000000000}',
    "groups": '{"stages": [[1, 4]], "block": "resnext", "groups": 1000000000000}',
    "a bottleneck": '{"stages": [[1, 4]], "block": "resnext", "groups": 1, "bot_mul": 1e308}',
    "an infinite bottleneck": '{"stages": [[1, 4]], "block": "resnext", "groups": 1, "bot_mul": 1e999}',
    "an epsilon": '{"stages": [[1, 4]], "epsilon": Infinity}',
    "depth": '{"stages": ' + "[" * 100_000,
    "a name": f'{{"stages": [[1, 4]], "{"x" * 1_000_000}": 1}}',
    "a block": f'{{"stages": [[1, 4]], "block": "{"x" * 1_000_000}"}}',
    "a name twice": '{"stages": [[1, 4]], "stages": [[2, 4]]}',
    "line breaks": '{"stages": [[1, 4]], "a\\nb": 1}',
}


@pytest.mark.parametrize("case", ABSURD)
def test_an_absurd_description_is_refused_at_once_in_one_line(case: str) -> None:
    began = time.thread_time()  # a framework's threads may be at work
    with pytest.raises(BadInput) as error:
        Architecture.from_json(ABSURD[case])
    one_line(error, "not the description of an architecture")
    assert len(str(error.value)) < 600
    assert time.thread_time() - began < 5  # Python looks through all that the frameworks hold, for garbage


@pytest.mark.parametrize(
    "options",
    [
        {"in_channels": 10**5000},
        {"epsilon": 10**5000},
        {"block": "resnext", "groups": 1, "bot_mul": 10**5000},
        {"stages": ((1, 10**5000),)},
    ],
    ids=lambda options: next(reversed(options)),
)
def test_numbers_that_nobody_can_write_are_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as error:
        Architecture(**{"stages": ((1, 4),), **options})
    one_line(error, "very large")


def test_json_without_axes_is_the_chapters_network() -> None:
    """So were checkpoints written before there were any."""
    text = '{"stages": [[1, 4], [2, 6]], "block": "residual", "in_channels": 3, "num_classes": 5, '
    text += '"stem_channels": 4, "groups": null, "bot_mul": 1.0}'
    assert Architecture.from_json(text) == RESIDUAL


def test_of_takes_the_tuple_of_the_chapter_or_an_architecture() -> None:
    assert Architecture.of(((2, 64), (2, 128)), num_classes=7) == Architecture(
        stages=((2, 64), (2, 128)), num_classes=7
    )
    assert Architecture.of(RESNEXT, num_classes=7) is RESNEXT


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet81", "unknown architecture 'resnet81'; did you mean resnet18?"),
        ("ResNet-18", "did you mean resnet18?"),
        ("", "known: resnet18"),
    ],
)
def test_an_unknown_architecture_gives_the_nearest(name: str, words: str) -> None:
    with pytest.raises(BadInput) as error:
        architecture(name)
    one_line(error, words)


@pytest.mark.parametrize("find", [find_backend, load_backend])
@pytest.mark.parametrize(
    ("name", "nearest"), [("pytorch", "torch"), ("tensorflow", None), ("mxnt", "mxnet"), ("jaxx", "jax")]
)
def test_an_unknown_backend_gives_the_nearest(find: Any, name: str, nearest: str | None) -> None:
    with pytest.raises(BadInput) as error:
        find(name)
    one_line(error, f"unknown backend {name!r}", "nown: mxnet, torch, tf, jax, oracle")
    assert nearest is None or f"did you mean {nearest}?" in str(error.value)


def test_a_backend_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.backend.find_spec", lambda name: None)
    with pytest.raises(BadInput) as error:
        load_backend("torch")
    one_line(error, "backend 'torch' is not installed", 'pip install "resnet-tabs[torch]"')


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (4, 3, 32, 70), (2, 3, 33, 47)])
def test_images_of_32_and_more_fit_every_network(shape: tuple[int, ...]) -> None:
    Architecture(stages=((1, 4),) * 5, in_channels=3).check_input(shape)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 32, 32), "(N, C, H, W)"),
        ((1, 1, 3, 32, 32), "(N, C, H, W)"),
        ((), "(N, C, H, W)"),
        ((0, 3, 32, 32), "N from 1 up"),
        ((1, 1, 32, 32), "images have 1 channels but the network takes 3"),
        ((1, 32, 32, 3), "images have 32 channels"),
        ((1, 3, 16, 32), "images of 16×32 are too small for this network; give 17×17 or more"),
        ((1, 3, 32, 0), "too small"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_one_line(shape: tuple[int, ...], words: str) -> None:
    arch = architecture("resnet18", in_channels=3)
    with pytest.raises(ValueError) as error:
        arch.check_input(shape)
    one_line(error, words)


def test_at_the_smallest_input_the_last_stride_still_has_two_pixels() -> None:
    assert [Architecture(stages=((1, 4),) * n).smallest_input for n in (1, 2, 3, 4, 5, 6)] == [
        3,
        5,
        9,
        17,
        32,
        32,
    ]

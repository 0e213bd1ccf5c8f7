"""`{drawing} residual`: a block or a network, drawn from the architecture's own data, as SVG in the page.

    {drawing} residual        the residual block; its shortcut is the input itself
    {drawing} residual-1x1    the same with a 1×1 convolution on the shortcut, which halves and doubles
    {drawing} resnext         the block of ResNeXt-50 (32×4d)
    {drawing} resnet18        the whole network, for images of 96×96

No picture can differ from the code: layers, channels, strides and groups come from `common.architecture`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from common.architecture import Architecture, Block, architecture
from common.summary import Part, parts

WIDTH = 340  # fits a phone of 390 pixels
MAIN, SIDE = 118, 284  # the middle of the layers, and of the shortcut beside them
IMAGE = (1, 1, 96, 96)


@dataclass
class Canvas:
    """SVG in the making, from top to bottom; everything is in the colour of the text around it."""

    y: float = 0
    shapes: list[str] = field(default_factory=list)

    def line(self, *points: tuple[float, float], dashed: bool = False, arrow: bool = True) -> None:
        """A line through points, with a head where it goes straight down or to the left."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.shapes.append(f'<polyline points="{path}" fill="none" stroke="currentColor"{dash}/>')
        if arrow:
            (x0, _), (x, y) = points[-2:]
            head = (
                f"{x},{y} {x - 4},{y - 8} {x + 4},{y - 8}"
                if x0 == x
                else f"{x},{y} {x + 8},{y - 4} {x + 8},{y + 4}"
            )
            self.shapes.append(f'<polygon points="{head}" fill="currentColor"/>')

    def text(self, x: float, y: float, text: str, anchor: str = "middle", style: str = "") -> None:
        """A line of text, centred on its height."""
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" dy=".35em" text-anchor="{anchor}" fill="currentColor"{style}>'
            f"{escape(text)}</text>"
        )

    def box(self, x: float, y: float, width: float, lines: list[str], filled: bool = False) -> float:
        """A box with lines of text, whose middle is at x and whose top is at y; its height."""
        height = 8 + 16 * len(lines)
        fill = 'fill="currentColor" fill-opacity=".1"' if filled else 'fill="none"'
        self.shapes.append(
            f'<rect x="{x - width / 2:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" {fill} '
            'stroke="currentColor"/>'
        )
        for i, line in enumerate(lines):
            self.text(x, y + 12 + 16 * i, line)
        return height

    def svg(self) -> str:
        """The whole, as wide as the page allows up to its own size."""
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.y:g}" width="{WIDTH}" height="{self.y:g}" font-size="13" '
            'font-family="inherit" aria-hidden="true">' + "".join(self.shapes) + "</svg>"
        )


@dataclass(frozen=True)
class Layer:
    """A layer as it is drawn: lines of text, and whether it is a convolution."""

    lines: list[str]
    is_convolution: bool = False


def layers(block: Block) -> tuple[list[Layer], list[Layer]]:
    """The block's layers, and its shortcut's, in the order data meets them."""
    found: tuple[list[Layer], list[Layer]] = ([], [])
    channels = {1: block.in_channels}
    for name, shape in block.layers():
        number = int(name[-1])
        on_shortcut = number > len(block.chain)
        if name.startswith("bn"):
            found[on_shortcut].append(Layer(["batch norm"]))
            if number < len(block.chain):
                found[0].append(Layer(["ReLU"]))
            continue
        inputs = block.in_channels if on_shortcut else channels[number]
        channels[number + 1] = shape[0]
        stride = block.strides if on_shortcut else block.chain[number - 1]
        found[on_shortcut].append(convolution(inputs, shape, stride))
    return found


def convolution(inputs: int, shape: tuple[int, ...], stride: int) -> Layer:
    """A convolution with weights of this OIHW shape."""
    outputs, width, height, _ = shape
    kind = f"{height}×{height} convolution" if stride == 1 else f"{height}×{height} conv., stride {stride}"
    lines = [kind, f"{inputs} → {outputs} channels"]
    if width != inputs:
        lines.append(f"{inputs // width} groups of {width} channels")
    return Layer(lines, is_convolution=True)


def draw_block(block: Block) -> str:
    """A block: its layers downwards, the shortcut around them."""
    canvas = Canvas(12)
    chain, shortcut = layers(block)
    canvas.text(MAIN, canvas.y, f"x: {block.in_channels} channels")
    top = canvas.y + 12
    split = top + 8
    y = top
    for layer in chain:
        gap = 26 if y == top else 14
        canvas.line((MAIN, y), (MAIN, y + gap))
        y += gap
        y += canvas.box(MAIN, y, 200, layer.lines, filled=layer.is_convolution)
    plus = y + 34
    canvas.line((MAIN, y), (MAIN, plus - 11))
    canvas.text(MAIN - 12, y + 11, "g(x)", "end", ' font-style="italic"')
    canvas.shapes.append(f'<circle cx="{MAIN}" cy="{plus:g}" r="11" fill="none" stroke="currentColor"/>')
    canvas.line((MAIN - 6, plus), (MAIN + 6, plus), arrow=False)
    canvas.line((MAIN, plus - 6), (MAIN, plus + 6), arrow=False)

    start, height = (MAIN, split), sum(8 + 16 * len(side(layer)) + 14 for layer in shortcut)
    at = (split + plus - height) / 2
    points = [start, (SIDE, split)]
    for layer in shortcut:
        canvas.line(*points, (SIDE, at))
        at += canvas.box(SIDE, at, 108, side(layer), filled=layer.is_convolution)
        points = [(SIDE, at)]
        at += 14
    canvas.line(*points, (SIDE, plus), (MAIN + 11, plus))
    canvas.text(SIDE - 8, plus - 12, "x" if not shortcut else "1×1 of x", "end", ' font-style="italic"')

    canvas.line((MAIN, plus + 11), (MAIN, plus + 26))
    y = plus + 26 + canvas.box(MAIN, plus + 26, 200, ["ReLU"])
    canvas.line((MAIN, y), (MAIN, y + 16))
    canvas.text(MAIN, y + 27, f"{block.num_channels} channels")
    canvas.y = y + 40
    return canvas.svg()


def side(layer: Layer) -> list[str]:
    """A layer's text where there is less room."""
    lines = [part for line in layer.lines for part in line.split(", ")]
    return [line.removesuffix(" channels") for line in lines]


def describe_block(block: Block) -> str:
    """What the drawing of a block shows."""
    chain, shortcut = ("; ".join(", ".join(layer.lines) for layer in part) for part in layers(block))
    around = f"The shortcut: {shortcut}." if shortcut else "The shortcut is x itself."
    return (
        f"From the input x, of {block.in_channels} channels, two ways lead to a sum. The layers: {chain}. "
        f"{around} After the sum: ReLU, and {block.num_channels} channels."
    )


def draw_network(arch: Architecture) -> str:
    """A network: its stages downwards, with what each puts out; dashed shortcuts have a 1×1 convolution."""
    canvas = Canvas(12)
    middle, width = 160, 200
    blocks = {block.name: block for stage in arch.blocks() for block in stage}
    canvas.text(middle, canvas.y, f"image: {shape_text(IMAGE)}")
    y: float = 22
    stage, shape = "", ""
    for part in parts(arch, IMAGE, "blocks"):
        name, block = part.row.name.partition(".")[0], blocks.get(part.row.name)
        gap = 16 if name == stage else 36
        canvas.line((middle, y), (middle, y + gap))
        if name != stage:
            canvas.text(8, y + gap + 12, name, "start", ' font-weight="bold"')
            canvas.text(middle + 12, y + 20, shape, "start", ' font-size="12"')
        top = y + gap
        y = top + canvas.box(middle, top, width, stage_lines(part, arch, blocks), filled=block is not None)
        if block:
            right = middle + width / 2 + 26
            around = ((middle, top - 9), (right, top - 9), (right, y + 5), (middle, y + 5))
            canvas.line(*around, dashed=block.use_1x1conv, arrow=False)
        stage, shape = name, shape_text(part.row.output_shape)
    canvas.line((middle, y), (middle, y + 18))
    canvas.text(middle, y + 29, f"{arch.num_classes} logits")
    canvas.y = y + 42
    return canvas.svg()


def stage_lines(part: Part, arch: Architecture, blocks: dict[str, Block]) -> list[str]:
    """The text of a stem, a block or a classifier."""
    if part.row.kind == "stem":
        return ["7×7 convolution, stride 2", "batch norm, ReLU", "3×3 max-pool, stride 2"]
    if part.row.kind == "classifier":
        return ["global average pool", f"dense, {arch.stages[-1][1]} → {arch.num_classes}"]
    block = blocks[part.row.name]
    stride = f", stride {block.strides}" if block.strides > 1 else ""
    return [f"residual, {block.in_channels} → {block.num_channels}{stride}"]


def shape_text(shape: tuple[int, ...]) -> str:
    """Channels, height and width of an output."""
    return " × ".join(map(str, shape[1:]))


def describe_network(arch: Architecture) -> str:
    """What the drawing of a network shows."""
    blocks = {block.name: block for stage in arch.blocks() for block in stage}
    steps = []
    for part in parts(arch, IMAGE, "blocks"):
        lines = ", ".join(stage_lines(part, arch, blocks))
        steps.append(f"{part.row.name}: {lines}, gives {shape_text(part.row.output_shape)}")
    return f"An image of {shape_text(IMAGE)} goes through {'; '.join(steps)}."


def drawing(name: str) -> tuple[str, str]:
    """The SVG of this name, and what it shows in words.

    Raises:
        KeyError: if there is none.
    """
    resnet, resnext = architecture("resnet18"), architecture("resnext50_32x4d")
    shown = {
        "residual": resnet.blocks()[0][0],
        "residual-1x1": resnet.blocks()[1][0],
        "resnext": resnext.blocks()[0][1],
        "resnet18": resnet,
    }[name]
    if isinstance(shown, Block):
        return draw_block(shown), describe_block(shown)
    return draw_network(shown), describe_network(shown)


class Drawing(SphinxDirective):
    """A drawing with a caption, which is the directive's content."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        try:
            svg, words = drawing(self.arguments[0])
        except KeyError:
            raise self.error(f"there is no drawing {self.arguments[0]!r}") from None
        caption = nodes.paragraph("", "", *self.parse_inline(" ".join(self.content))[0], classes=["caption"])
        figure = f'<div class="drawing" role="img" aria-label="{escape(words)}">{svg}</div>'
        return [nodes.raw("", figure, format="html"), caption]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("drawing", Drawing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Random networks: small programs of blocks that Hypothesis composes, shrinks and prints.

A `Program` is data; `build` makes the real `nn.Module`, with seeded weights, in float64, where
rounding hides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from .image_blocks import IMAGE_BLOCKS
from .sequence_blocks import TOKEN_BLOCKS, VECTOR_BLOCKS, ClassToken, Mixer

VOCABULARY = 11


@dataclass(frozen=True)
class Step:
    """One block: its name, its width, and a number that picks among its variants."""

    name: str
    width: int = 8
    option: int = 0


@dataclass(frozen=True)
class Program:
    """`start` input, blocks on images, the way to tokens, blocks on tokens, the way to vectors, blocks, output."""

    start: str = "vector"
    image: tuple[Step, ...] = ()
    to_tokens: str = ""
    token: tuple[Step, ...] = ()
    to_vector: str = ""
    vector: tuple[Step, ...] = ()
    head: str = "linear"
    output: str = "tensor"
    call: str = "tensor"
    batch: int = 2
    seed: int = 0


@dataclass
class Output:
    """What many models return instead of a tensor."""

    logits: Tensor
    hidden: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class ToTokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class ToVector(nn.Module):
    """Image or tokens to one vector per example."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "flatten":
            return x.flatten(1)
        if self.how == "view":
            return x.contiguous().view(x.shape[0], -1)
        if x.dim() == 4:
            return nn.functional.adaptive_avg_pool2d(x, 2 if self.how == "pool2x2" else 1).flatten(1)
        return x[:, 0] if self.how == "first" else x.mean(1)


class Network(nn.Module):
    """Runs its blocks one after another and wraps the result."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.output = program.output
        self.head_kind = program.head
        self.embed: nn.Module | None = None
        self.blocks = nn.ModuleList()
        self.head: nn.Module = nn.Identity()

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Any:
        if self.embed is not None:
            x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        y = self.head(x)
        if self.head_kind == "tied":
            y = nn.functional.linear(y, self.embed.weight)
        if gain is not None:
            y = y * gain
        if self.output == "tuple":
            return y, [y.sum()]
        if self.output == "dict":
            return {"logits": y, "loss": None}
        if self.output == "dataclass":
            return Output(y, extra={"twice": y * 2})
        return y


def build(program: Program) -> tuple[Network, Any]:
    """The network and example inputs for it."""
    generator = torch.Generator().manual_seed(program.seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(program.seed)
            network, x = _assemble(program, generator)
            randomise_(network, generator)
    finally:
        torch.set_default_dtype(default)
    network.eval()
    if program.call == "dict":
        return network, {"x": x, "gain": torch.tensor(0.7, dtype=torch.float64)}
    return network, (x,) if program.call == "tuple" else x


def _assemble(program: Program, generator: torch.Generator) -> tuple[Network, Tensor]:
    network = Network(program)
    shape = {"image": (3, 6, 6), "tokens": (5, 6), "ids": (5,), "vector": (6,)}[program.start]
    x = torch.randn(program.batch, *shape, generator=generator, dtype=torch.float64)
    if program.start == "ids":
        x = torch.randint(0, VOCABULARY, (program.batch, *shape), generator=generator)
        network.embed = nn.Embedding(VOCABULARY, 8)
    network.eval()

    at = x if network.embed is None else network.embed(x)  # flows along, so that each block learns its input's shape

    def append(block: nn.Module) -> None:
        nonlocal at
        network.blocks.append(block.eval())
        at = block(at)

    if program.start == "image":
        append(nn.Conv2d(3, 4, 3, padding=1))
    for step in program.image:
        append(IMAGE_BLOCKS[step.name](at.shape[1], step.width, step.option))
    if program.to_tokens:
        append(ToTokens())
    if at.dim() == 3:
        if program.to_tokens == "class_token":
            append(ClassToken(at.shape[2], at.shape[1]))
        for step in program.token:
            if step.name == "mixer":
                append(Mixer(at.shape[1], step.width))
            else:
                append(TOKEN_BLOCKS[step.name](at.shape[2], step.width, step.option))
    if program.to_vector:
        append(ToVector(program.to_vector))
    if at.dim() == 2:
        for step in program.vector:
            append(VECTOR_BLOCKS[step.name](at.shape[1], step.width, step.option))
    if program.head == "tied":
        network.head = nn.Linear(at.shape[-1], 8)
    elif program.head == "linear" or not list(network.parameters()):
        network.head = nn.Conv2d(at.shape[1], 3, 1) if at.dim() == 4 else nn.Linear(at.shape[-1], 3)
    return network, x


def randomise_(network: nn.Module, generator: torch.Generator) -> None:
    """Weights of unit gain, biases and statistics away from 0 and 1, so that nothing is right by chance."""
    for key, p in network.named_parameters():
        if p.dim() > 1 and "position" not in key:
            p.normal_(0, (p[0].numel()) ** -0.5, generator=generator)
        else:
            p.uniform_(0.2, 1.2, generator=generator)
    for b in network.buffers():
        if b.dtype.is_floating_point:
            b.uniform_(0.5, 1.5, generator=generator)


def steps(
    blocks: Mapping[str, Any], max_size: int, *more: str, options: int = 6
) -> st.SearchStrategy[tuple[Step, ...]]:
    step = st.builds(
        Step,
        name=st.sampled_from([*blocks, *more]),
        width=st.sampled_from([8, 4, 6, 12]),
        option=st.integers(0, options - 1),
    )
    return st.lists(step, max_size=max_size).map(tuple)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Networks of up to six blocks."""
    start = draw(st.sampled_from(["vector", "image", "tokens", "ids"]))
    image = draw(steps(IMAGE_BLOCKS, 4)) if start == "image" else ()
    to_tokens = draw(st.sampled_from(["", "plain", "class_token"])) if start == "image" else ""
    is_tokens = bool(to_tokens) or start in ("tokens", "ids")
    token = draw(steps(TOKEN_BLOCKS, 3, "mixer", options=192)) if is_tokens else ()
    ways = ["mean", "first", "flatten", ""] if is_tokens else ["mean", "flatten", "view", "pool2x2", ""]
    to_vector = draw(st.sampled_from(ways)) if start != "vector" else ""
    vector = draw(steps(VECTOR_BLOCKS, 3)) if to_vector or start == "vector" else ()
    is_language = start == "ids" and not to_vector
    return Program(
        start=start,
        image=image,
        to_tokens=to_tokens,
        token=token,
        to_vector=to_vector,
        vector=vector,
        head=draw(st.sampled_from(["linear", "none", *(["tied"] if is_language else [])])),
        output=draw(st.sampled_from(["tensor", "tuple", "dict", "dataclass"])),
        call=draw(st.sampled_from(["tensor", "tuple", "dict"])),
        batch=draw(st.sampled_from([2, 1, 3])),
        seed=draw(st.integers(0, 3)),
    )

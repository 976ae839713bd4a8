"""The coding of shared weights: a codebook, and for each weight or kernel the number of its entry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from secateur.coding import CODINGS, Coding
from secateur.coding.entropy import MAX_SYMBOLS, decode, encode
from secateur.errors import ConfigError, FileError


@CODINGS.register("codebook")
class Codebook(Coding):
    """weight[j] = scale[j] * codebook[codes[j]], for units j of some neighbouring weights: one weight, or one kernel.

    Training moves the codebook and the scales, so weights of one code stay equal; the free weight below has no say.
    Where `has_zero`, code 0 stands for zeros that stay zero, and code c for row c - 1. A codebook may be lent by the
    coding of another weight.

    Args:
        codebook: (n_values, unit).
        codes: (n,) whole numbers; shape: of the weight, n * unit numbers.
        scales: (0,) for none, (1,) for one of the whole weight, (n,) for one of each unit.

    >>> coding = Codebook(torch.tensor([[0.5], [2.0]]), torch.tensor([0, 1, 2, 1]), (2, 2), has_zero=True)
    >>> coding(torch.zeros(2, 2))
    tensor([[0.0000, 0.5000],
            [2.0000, 0.5000]], grad_fn=<ViewBackward0>)
    """

    kind: ClassVar[str] = "codebook"
    codes: Tensor
    scales: Tensor
    own: nn.Parameter | None

    def __init__(
        self,
        codebook: Tensor,
        codes: Tensor,
        shape: tuple[int, ...],
        *,
        scales: Tensor | None = None,
        has_zero: bool = False,
    ) -> None:
        super().__init__()
        self.n_values, self.unit = codebook.shape
        self.shape = tuple(shape)
        self.has_zero = has_zero
        self.own = nn.Parameter(codebook)
        self.lender: tuple[Codebook, ...] = ()  # a tuple, since it is no child of this module
        self.register_buffer("codes", codes.int())
        self.scales = nn.Parameter(codebook.new_zeros(0) if scales is None else scales)

    @property
    def codebook(self) -> Tensor:
        """The rows, one's own or the lender's."""
        found = self.lender[0].codebook if self.lender else self.own
        assert found is not None
        return found

    def borrow_(self, lender: Codebook) -> None:
        """Use the codebook of another coding from now on.

        Raises:
            ConfigError: its rows or its zero are others.
        """
        if (lender.n_values, lender.unit, lender.has_zero) != (
            self.n_values,
            self.unit,
            self.has_zero,
        ) or lender.lender:
            raise ConfigError("A codebook can be borrowed only from a coding of the same settings that owns it.")
        self.lender, self.own = (lender,), None

    def forward(self, weight: Tensor) -> Tensor:
        """The rows by code, scaled. The free weight is not read."""
        rows = self.codebook
        if self.has_zero:
            rows = torch.cat([rows.new_zeros(1, self.unit), rows])
        units = rows.flatten().index_select(0, self.codes) if self.unit == 1 else rows.index_select(0, self.codes)
        if len(self.scales):
            units = units * (self.scales if self.unit == 1 else self.scales[:, None])
        return units.reshape(self.shape)

    def settings(self) -> dict[str, Any]:
        """Sizes; the values come from `unpack`."""
        return {
            "n_values": self.n_values,
            "unit": self.unit,
            "n_scales": len(self.scales),
            "has_zero": self.has_zero,
        }

    @classmethod
    def blank(cls, weight: Tensor, settings: Mapping[str, Any]) -> Self:
        """A codebook of zeros."""
        if settings.keys() != {"n_values", "unit", "n_scales", "has_zero"}:
            raise ConfigError(f"A codebook has n_values, unit, n_scales and has_zero, not {sorted(settings)}.")
        n_values, unit, n_scales = (settings[name] for name in ("n_values", "unit", "n_scales"))
        if not all(type(n) is int and n >= 0 for n in (n_values, unit, n_scales)) or not unit or weight.numel() % unit:
            raise ConfigError(f"A weight {tuple(weight.shape)} has no units of {unit} numbers.")
        n = weight.numel() // unit
        if not 1 <= n_values <= min(n, MAX_SYMBOLS - 1) or n_scales not in (0, 1, n):
            raise ConfigError(f"{n} units can't have {n_values} values and {n_scales} scales.")
        made = weight.new_zeros
        codes = torch.zeros(n, dtype=torch.int32, device=weight.device)
        return cls(
            made(n_values, unit), codes, tuple(weight.shape), scales=made(n_scales), has_zero=bool(settings["has_zero"])
        )

    @property
    def n_symbols(self) -> int:
        """How many codes there are."""
        return self.n_values + self.has_zero

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """codes: entropy-coded; values: the codebook, where it is one's own; scales: where there are any."""
        packed = {"codes": encode(self.codes, self.n_symbols)}
        if self.own is not None:
            packed["values"] = self.own.detach()
        if len(self.scales):
            packed["scales"] = self.scales.detach()
        return packed

    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """Take on codes, values and scales. A borrower's weight is right once its lender is unpacked too."""
        expected = {"codes", *(["values"] if self.own is not None else []), *(["scales"] if len(self.scales) else [])}
        if packed.keys() != expected:
            raise FileError(f"These codes are stored as {sorted(expected)}, not as {sorted(packed)}. Restore the file.")
        for name, mine in (("values", self.own), ("scales", self.scales)):
            given = packed.get(name)
            if given is None or mine is None:
                continue
            if given.shape != mine.shape or not given.is_floating_point():
                raise FileError(f"The {name} are {tuple(given.shape)} of {given.dtype}, not {tuple(mine.shape)}.")
            mine.data = given.to(mine.device)
        self.shape = tuple(shape)
        self.codes = decode(packed["codes"], self.n_symbols, math.prod(shape) // self.unit).int().to(self.codes.device)
        with torch.no_grad():
            return self.forward(self.codes)

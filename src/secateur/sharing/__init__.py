"""Weight sharing: few values, or few kernels, that many weights have in common."""

from __future__ import annotations

from secateur.sharing.codebook import Codebook
from secateur.sharing.edit import Codebooks

__all__ = ["Codebook", "Codebooks"]

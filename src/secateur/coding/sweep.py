"""Coding a matrix column by column, where the columns that are still free make up for what the coded ones lost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.compensation.moments import damped
from secateur.errors import GroupError

CodeColumn = Callable[[Tensor, int], Tensor]
"""Codes one column (…, out), the i-th of its block."""
ChooseCode = Callable[[Tensor, Tensor, int], CodeColumn]
"""Looks at a block (…, out, b), its roots (…, 1, b) and its first column, and says how to code its columns."""


def sweep(weight: Tensor, hessian: Tensor, choose: ChooseCode, *, block: int = 128, damping: float = 0.01) -> Tensor:
    """Code each column and move those after it, to keep sum_n |(W - W') x_n|^2 = tr (W - W') H (W - W')^T small.

    With H^-1 = U^T U, U upper triangular, and column i coded as c:
        e = (w_i - c) / U_ii;   w_j <- w_j - e U_ij for all j > i,
    after which the free columns are the best ones for the coded ones so far, and the error has grown by |e|^2.

    `choose(block, roots, start)` is called when a block is reached and all columns before it are coded: the place for
    what several columns share, such as the scale of a group or the pattern of a mask. (w / root)^2 is what setting w to
    zero would cost. What it returns is called for each column of the block in turn.

    Args:
        weight: (…, out, in); leading axes are groups of a convolution.
        hessian: (…, in, in), H = sum_n x_n x_n^T of the layer's inputs, up to a factor.
        choose: sees the weights in the dtype of `hessian`.
        block: columns that `choose` sees at once; the last block may be smaller.
        damping: fraction of the mean diagonal of H that is added to its diagonal.
    Returns:
        (…, out, in), the coded weight, in the dtype of `weight`.
    Raises:
        GroupError: H holds NaN or Inf, or is singular and not damped.
    Source: Frantar et al., "GPTQ", ICLR 2023, section 3; Frantar and Alistarh, "SparseGPT", ICML 2023, section 3.
    Differs: U comes from a Cholesky factor of the reversed H, without an inverse; updates are made by halves
        rather than in blocks of 128, which gives the same numbers and leaves `block` to what `choose` needs.

    >>> rounded = lambda block, roots, start: lambda column, i: column.round()
    >>> x = torch.tensor([[1.0, 1.0], [1.0, 0.9]])  # two inputs that say nearly the same
    >>> sweep(torch.tensor([[0.4, 0.4]]), x.T @ x, rounded)  # 0 and 0 would be nearest
    tensor([[0., 1.]])
    """
    factor = _inverse_factor(hessian, damping)
    roots = factor.diagonal(dim1=-2, dim2=-1)[..., None, :]
    free = weight.to(hessian.dtype, copy=True)
    errors = torch.zeros_like(free)
    n = weight.shape[-1]

    def code_columns(low: int, high: int, code: CodeColumn | None) -> None:
        """Code the columns from `low` to `high`; those behind `high` are not moved yet."""
        size = high - low
        if code is None and size <= block:
            code = choose(free[..., low:high], roots[..., low:high], low)
        if size == 1:
            assert code is not None
            coded = code(free[..., low], low % block)
            errors[..., low] = (free[..., low] - coded) / roots[..., low]
            free[..., low] = coded
            return
        middle = low + (size // 2 if code else -(-size // block) // 2 * block)
        code_columns(low, middle, code)
        free[..., middle:high] -= errors[..., low:middle] @ factor[..., low:middle, middle:high]
        code_columns(middle, high, code)

    if n:
        code_columns(0, n, None)
    return free.to(weight.dtype)


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """U, upper triangular, with H^-1 = U^T U: with H = V V^T, V upper triangular, it is V^-1."""
    if not torch.isfinite(hessian).all():
        raise GroupError("The activations hold NaN or Inf. Check the calibration data and the model's outputs.")
    lower, info = torch.linalg.cholesky_ex(damped(hessian, damping).flip(-1, -2))
    if bool(info.any()):
        raise GroupError(f"The inputs of this layer are dependent at damping={damping}. Raise it, to 0.01 say.")
    identity = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(-1, -2), identity, upper=True)
    return factor

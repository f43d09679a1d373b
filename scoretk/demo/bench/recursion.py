"""Linear recursions along a sequence, without a step for each of its terms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["autoregressive", "log_product"]


def autoregressive(inputs: Tensor, factor: Tensor) -> Tensor:
    r"""`s_t = u_t + f s_(t-1)` with `s_0 = u_0`.

    The filter is the product of `1 + f^(2^k) B^(2^k)` over k, B being the shift by a step.

    Args:
        inputs: u, `(batch, n)`.
        factor: f, `(batch, 1)`.

    Returns:
        s, `(batch, n)`.
    """
    made, shift = inputs, 1
    while shift < made.shape[1]:
        made = made + factor * pad(made[:, :-shift], (shift, 0))
        factor, shift = factor.square(), 2 * shift
    return made


def log_product(log_matrices: Tensor) -> Tensor:
    """The logarithm of `exp(M_1) exp(M_2) .. exp(M_n)`, products of neighbours first.

    Args:
        log_matrices: The logarithms of the entries, `(batch, n, k, k)`.

    Returns:
        That of the product's, `(batch, k, k)`.
    """
    made = log_matrices
    while made.shape[1] > 1:
        pairs = made.shape[1] // 2
        left = made[:, : 2 * pairs : 2]
        right = made[:, 1 : 2 * pairs : 2]
        rest = made[:, 2 * pairs :]
        product = (left[..., :, None] + right[..., None, :, :]).logsumexp(-2)
        made = torch.cat([product, rest], 1)
    return made[:, 0]

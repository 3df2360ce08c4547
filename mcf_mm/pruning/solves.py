"""Linear algebra of the closed form, in double precision: least squares, OBS, best bases."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Ridge term, as a share of the mean second moment of the elements.
RIDGE = 1e-3
#: Eigenvalues below this share of the largest count as that: moments are no more exact (float32).
FLOOR = 1e-8


def augmented(linear: nn.Linear) -> Tensor:
    """Weight and bias of a layer in one, double ``(O, I + 1)``."""
    weight = linear.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().double()
    return torch.cat((weight, bias[:, None]), 1)


def regularise(moments: Tensor, ridge: float = RIDGE) -> Tensor:
    """Add a share of the mean second moment to the diagonal; the constant is left as it is.

    Args:
        moments: Second moments of ``[x, 1]``, double ``(I + 1, I + 1)``.
        ridge: The share. Defaults to 0.001.
    """
    moments = moments.clone()
    own = moments.diagonal()[:-1]
    own += ridge * own.mean() + torch.finfo(torch.double).tiny
    return moments


def inverse_of(moments: Tensor) -> Tensor:
    """Inverse of regularised moments, which are symmetric and positive definite."""
    factor, failed = torch.linalg.cholesky_ex(moments)
    # Rounding can leave an eigenvalue below zero where the ridge term is tiny.
    return torch.linalg.inv(moments) if failed else torch.cholesky_inverse(factor)


def solve_kept(weight: Tensor, moments: Tensor, kept: Tensor, ridge: float = RIDGE) -> Tensor:
    """Weights of the kept inputs that come closest to what all inputs gave (least squares).

    Args:
        weight: Weights and bias, double ``(O, I + 1)``.
        moments: Second moments of ``[x, 1]``, ``(I + 1, I + 1)``.
        kept: Ascending indices of the inputs that stay, ``(K,)``.
        ridge: See :func:`regularise`. Defaults to 0.001.

    Returns:
        New weights and bias, ``(O, K + 1)``.
    """
    moments = regularise(moments, ridge)
    index = torch.cat((kept, kept.new_tensor([len(moments) - 1])))
    own, cross = moments[index][:, index], moments[index]
    return torch.linalg.solve(own, cross @ weight.T).T


@dataclass
class RemovalOrder:
    """In which order elements go, and what that costs.

    Attributes:
        order: Elements, the first to go first, ``(I,)``.
        cost: Loss when the first n have gone and the others are re-solved, ``(I + 1,)`` from 0
            on, never falling.
    """

    order: Tensor
    cost: Tensor

    def kept(self, size: int) -> Tensor:
        """Ascending indices of the ``size`` elements that stay longest."""
        return self.order[len(self.order) - size :].sort().values


def removal_order(
    weight: Tensor,
    moments: Tensor,
    metric: Tensor | None = None,
    ridge: float = RIDGE,
    panel: int = 32,
    look: Callable[[int, Tensor, Tensor], None] | None = None,
) -> RemovalOrder:
    """Remove inputs one by one, the one that costs least first, and update the others (OBS).

    Input j costs ``w_j^T G w_j / [H^-1]_jj``, w_j its column of the weights, H the moments and G
    the metric of the output (Hassibi and Stork, 1993; for whole inputs as in ZipLM, Kurtic et al.,
    2023). After each removal the weights that stay are updated, and H^-1 by a rank of 1. One
    order serves every size.

    The updates are gathered in panels and done as matrix products, which gives the same numbers
    up to rounding.

    Args:
        weight: Weights and bias, double ``(O, I + 1)``.
        moments: Second moments of ``[x, 1]``, ``(I + 1, I + 1)``; the constant never goes.
        metric: G, ``(O, O)``; None for the identity. Defaults to None.
        ridge: See :func:`regularise`. Defaults to 0.001.
        panel: Removals in a panel. Defaults to 32.
        look: Called after each panel with the number of inputs that have gone, the indices of those
            that are left, the constant last, and their updated weights. Defaults to None.
    """
    number = weight.shape[1] - 1
    inverse = inverse_of(regularise(moments, ridge))
    weight = weight.clone()
    metric = torch.eye(len(weight)).to(weight) if metric is None else metric
    alive = torch.arange(number + 1, device=weight.device)
    order, costs = [], []
    while len(alive) > 1:
        # What has gone is taken out of the matrices, so that they become smaller and smaller.
        past = inverse.new_empty(panel, len(alive))  # rows that went out of H^-1
        columns, scales = weight.new_empty(panel, len(weight)), weight.new_empty(panel)
        energy = ((metric @ weight) * weight).sum(0)
        diagonal = inverse.diagonal().clone()
        gone = torch.zeros(len(alive), dtype=torch.bool, device=alive.device)
        gone[-1] = True  # the constant cannot go
        steps = min(panel, len(alive) - 1)
        for m in range(steps):
            cost = (energy / diagonal).masked_fill(gone, torch.inf)
            j = int(cost.argmin())
            order.append(int(alive[j]))
            costs.append(float(cost[j]))
            h, w = inverse[:, j], weight[:, j]
            if m:
                before = past[:m, j] / scales[:m]
                h = h - past[:m].T @ before
                w = w - columns[:m].T @ before
            pivot = h[j].clone()
            share = h / pivot
            felt = metric @ w
            cross = weight.T @ felt
            if m:
                cross = cross - past[:m].T @ (columns[:m] @ felt / scales[:m])
            energy = energy - 2 * share * cross + share.square() * (w @ felt)
            diagonal = diagonal - h.square() / pivot
            past[m], columns[m], scales[m] = h, w, pivot
            gone[j] = True
        past, columns = past[:steps], columns[:steps]
        shares = past / scales[:steps, None]
        stays = ~gone
        stays[-1] = True
        weight = (weight - columns.T @ shares)[:, stays]
        inverse = (inverse - past.T @ shares)[stays][:, stays]
        alive = alive[stays]
        if look is not None:
            look(number + 1 - len(alive), alive, weight)
    total = torch.tensor([0.0, *costs], dtype=torch.double).clamp(min=0).cumsum(0)
    return RemovalOrder(torch.tensor(order), total)


class Judge:
    """The loss of solutions for some inputs, by the moments of some images.

    ``tr(G D M D^T)``, D the change of weights and bias, taken apart: a solution for K inputs takes
    K^2 products for each output and not I^2.

    Args:
        weight: Weights and bias W of the dense layer, double ``(O, I + 1)``.
        moments: M, ``(I + 1, I + 1)``.
        metric: G, ``(O, O)``; None for the identity. Defaults to None.
    """

    def __init__(self, weight: Tensor, moments: Tensor, metric: Tensor | None = None):
        self.moments, self.metric = moments, metric
        # Sums of floats are not symmetric to the last bit, and the loss is a small difference.
        self.given = weight @ (moments + moments.T) / 2  # W M
        self.full = float((self.given * self._felt(weight)).sum())

    def _felt(self, weight: Tensor) -> Tensor:
        return weight if self.metric is None else self.metric @ weight

    def __call__(self, solved: Tensor, kept: Tensor) -> float:
        """The loss of weights and bias ``(O, K + 1)`` for the kept inputs, ``(K,)``."""
        index = torch.cat((kept, kept.new_tensor([len(self.moments) - 1])))
        own = self.moments[index][:, index]
        inner = solved @ own - 2 * self.given[:, index]
        # Rounding may leave a little less than nothing.
        return max(0.0, self.full + float((inner * self._felt(solved)).sum()))


def group_removal_order(
    weight: Tensor,
    moments: Tensor,
    metric: Tensor | None,
    groups: int,
    ridge: float = RIDGE,
) -> RemovalOrder:
    """Remove groups of inputs, such as heads, as :func:`removal_order` removes single ones.

    Group g costs ``tr(G W_g [H^-1]_gg^-1 W_g^T)``, and what stays is solved anew.

    Args:
        weight: Weights and bias, double ``(O, I + 1)``.
        moments: Second moments of ``[x, 1]``, ``(I + 1, I + 1)``.
        metric: See :func:`removal_order`.
        groups: How many there are; each has equally many inputs, side by side.
        ridge: See :func:`regularise`. Defaults to 0.001.
    """
    size = (weight.shape[1] - 1) // groups
    moments = regularise(moments, ridge)
    metric = torch.eye(len(weight)).to(weight) if metric is None else metric
    alive = list(range(groups))
    order, costs = [], []
    while alive:
        kept = torch.cat([torch.arange(g * size, (g + 1) * size) for g in alive])
        kept = torch.cat((kept, torch.tensor([len(moments) - 1]))).to(moments.device)
        own = inverse_of(moments[kept][:, kept])
        solved = weight @ moments[:, kept] @ own
        blocks = own[:-1, :-1].unflatten(0, (-1, size)).unflatten(2, (-1, size))
        inner = torch.linalg.inv(torch.stack([blocks[g, :, g] for g in range(len(alive))]))
        columns = solved[:, :-1].unflatten(1, (-1, size)).transpose(0, 1)  # (groups, O, size)
        cost = ((metric @ columns @ inner) * columns).sum((1, 2))
        first = int(cost.argmin())
        order.append(alive.pop(first))
        costs.append(float(cost[first]))
    total = torch.tensor([0.0, *costs], dtype=torch.double).clamp(min=0).cumsum(0)
    return RemovalOrder(torch.tensor(order), total)


def root(matrix: Tensor, floor: float = FLOOR) -> tuple[Tensor, Tensor]:
    """Square root of a symmetric positive semi-definite matrix, and the inverse of that.

    Args:
        matrix: ``(..., d, d)``, double.
        floor: Eigenvalues below this share of the largest count as that. Defaults to 1e-8.
    """
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    smallest = values.amax(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny) * floor
    values = torch.maximum(values, smallest).sqrt()
    return (vectors * values[..., None, :]) @ vectors.mT, (
        vectors / values[..., None, :]
    ) @ vectors.mT


@dataclass
class Basis:
    """A change of basis of the channels of a head that puts the most important first.

    Attributes:
        into: ``M``: new channels are ``M x``, ``(d, d)``.
        back: Inverse of ``into``.
        cost: What is lost when n channels are dropped from the end, ``(d + 1,)`` from 0 on.
    """

    into: Tensor
    back: Tensor
    cost: Tensor


def value_basis(proj: Tensor, covariance: Tensor, metric: Tensor | None = None) -> Basis:
    """Principal basis of the values of a head, as the metric of the output sees them.

    From the singular values of ``G^1/2 W C^1/2`` (Eckart and Young, 1936): W the columns of proj
    for this head, C the covariance of its values, G the metric of the output. That of proj times
    v with the attention-averaged inputs is the same, for C is that of v times these inputs.

    Args:
        proj: W, double ``(O, d)``.
        covariance: C, ``(d, d)``; the mean is left to the bias.
        metric: G, ``(O, O)``; None for the identity. Defaults to None.
    """
    seen = proj if metric is None else root(metric)[0] @ proj
    covariance, size = _scaled(covariance)
    half, inverse = root(covariance)
    _, values, right = torch.linalg.svd(seen @ half, full_matrices=True)
    return Basis(right @ inverse, half @ right.mT, _tail(values, proj.shape[1]) * size)


def pair_bases(query: Tensor, key: Tensor) -> tuple[Basis, Basis]:
    """Bases of query and key of a head in which their product loses least at the end.

    The error of ``q^T E k`` has the size ``|Q^1/2 E K^1/2|``; without the last n channels it is
    the sum of the squares of the last singular values of ``Q^1/2 K^1/2``.

    Args:
        query: Q, how much each direction of the query matters, double ``(d, d)``.
        key: K, the same for the key.
    """
    (query, q_size), (key, k_size) = _scaled(query), _scaled(key)
    (q_half, q_inverse), (k_half, k_inverse) = root(query), root(key)
    left, values, right = torch.linalg.svd(q_half @ k_half)
    scale = values.sqrt()
    q_into, k_into = scale[:, None] * (left.mT @ q_inverse), scale[:, None] * (right @ k_inverse)
    q_back, k_back = (q_half @ left) / scale, (k_half @ right.mT) / scale
    cost = _tail(values, len(query)) * q_size * k_size
    return Basis(q_into, q_back, cost), Basis(k_into, k_back, cost)


def _scaled(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix whose mean eigenvalue is 1, and its size; of a dead head the identity and 0."""
    size = matrix.diagonal().mean()
    return (matrix / size, size) if size > 0 else (torch.eye(len(matrix)).to(matrix), size)


def _tail(values: Tensor, number: int) -> Tensor:
    """Sums of the last n squares, n from 0 on."""
    squares = values.new_zeros(number)
    squares[: len(values)] = values.square()
    return torch.cat((squares.new_zeros(1), squares.flip(0).cumsum(0)))

"""Whether two tensors are the same numbers, where a rewritten graph lays them out differently."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import permutations

import numpy as np

_MOST_AXES = 5  # 120 orders
_OUTLIERS = 0.01  # share of a tensor's numbers
_DEAD = 1e-2  # a channel this far below the usual one is judged by the usual one's size


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Return ||got - expected|| / ||expected||; infinite where that is no number.

    Infinities in the same places (masks) count as equal; so do NaNs.
    """
    a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # infinities are looked at below
        size, gap_size = float(np.linalg.norm(b)), float(np.linalg.norm(a - b))
    if 0 < size < np.inf and np.isfinite(gap_size):  # nearly always
        return gap_size / size
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    gap = np.where(same, 0.0, a) - np.where(same, 0.0, b)
    size = _size(np.where(same & ~np.isfinite(b), 0.0, b))
    error = _size(gap)
    return error / size if np.isfinite(error) and 0 < size < np.inf else float("inf")


def _size(values: np.ndarray) -> float:
    """Euclidean norm; scaled first, so that a mask's -3e38 does not overflow."""
    largest = float(np.abs(values).max(initial=0.0))
    if not 0 < largest < np.inf:
        return largest
    return largest * float(np.sqrt(np.square(values / largest).sum()))


def rounding_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Return the relative error, or that without the worst hundredth where it is less.

    A range that was found on a few shots clips the odd outlier of what it has not seen, and one
    clipped outlier may be all of a tensor's error.
    """
    whole = relative_error(got, expected)
    a, b = np.ravel(got).astype(np.float64), np.ravel(expected).astype(np.float64)
    kept = len(a) - int(_OUTLIERS * len(a))
    if not np.isfinite(whole) or kept == len(a):
        return whole
    rows = np.argpartition(np.abs(a - b), kept - 1)[:kept]
    return min(whole, relative_error(a[rows], b[rows]))


def weight_error(got: np.ndarray, expected: np.ndarray, axis: int) -> float:
    """Return how wrong the worst output channel of a rounded weight is: 1 for a doubled scale.

    A solver that makes up for its rounding moves a channel by up to half of its length, but hardly
    along itself, and it clears the columns of inputs that are always zero; a wrong scale does
    nothing but stretch, and a channel in another's place has nothing left along itself. So the
    error is |<got, expected> / <expected, expected> - 1|, over the columns that are in use.

    Args:
        got, expected: weights of one shape.
        axis: the one that counts output channels.
    """
    a = np.moveaxis(got, axis, 0).reshape(got.shape[axis], -1).astype(np.float64)  # (out, n)
    b = np.moveaxis(expected, axis, 0).reshape(a.shape).astype(np.float64)
    if not np.isfinite(a).all() or (b.any() and not a.any()):
        return float("inf")
    b = b * a.any(axis=0)
    sizes = np.square(b).sum(axis=1)
    usual = float(sizes.mean())
    if usual == 0:
        return float("inf") if a.any() else 0.0
    return float((np.abs(((a - b) * b).sum(axis=1)) / np.maximum(sizes, _DEAD**2 * usual)).max())


def layouts(values: np.ndarray, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the ways in which a tensor may have been laid out in `shape`, likeliest first.

    As it is; its axes in another order; the first token alone of such an order; reshaped.
    """
    shape = tuple(shape)
    if values.shape == shape:
        yield values
    if values.ndim == len(shape) <= _MOST_AXES:
        turned = [values.transpose(order) for order in permutations(range(values.ndim))]
        yield from (option for option in turned[1:] if option.shape == shape)
        firsts = (_first(option, shape) for option in turned)
        yield from (option for option in firsts if option is not None)
    if values.shape != shape and values.size == int(np.prod(shape)):
        yield values.reshape(shape)


def _first(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return element 0 of the one axis in which the shapes differ, if `shape` has 1 there."""
    unlike = [axis for axis, size in enumerate(shape) if values.shape[axis] != size]
    if len(unlike) != 1 or shape[unlike[0]] != 1:
        return None
    return values.take([0], axis=unlike[0])


def laid_out(expected: np.ndarray, got: np.ndarray) -> np.ndarray | None:
    """Return `expected` in the shape of `got`, None where no layout has it.

    An equal shape is taken as it is: a layout that is wrong must not be excused by another.
    """
    if expected.shape == got.shape:
        return expected
    options = list(layouts(expected, got.shape))
    return min(options, key=lambda option: relative_error(got, option)) if options else None


class Known:
    """Tensors that others are looked up among by their numbers, in whatever layout."""

    def __init__(self, tensors: Iterable[np.ndarray]) -> None:
        """Sort by number of elements; the sizes are computed once."""
        self.by_count: dict[int, list[tuple[float, np.ndarray]]] = defaultdict(list)
        for values in tensors:
            if values.dtype.kind == "f" and values.size:
                self.by_count[values.size].append((_finite_size(values), values))

    def error(self, got: np.ndarray, tolerance: float) -> float | None:
        """Return the error of the first tensor that `got` equals, None where there is none."""
        size = _finite_size(got)
        for other, values in self.by_count.get(got.size, []):
            # cheap, and most fall here: no layout changes the size
            if abs(size - other) <= tolerance * max(other, size):
                for option in layouts(values, got.shape):
                    error = relative_error(got, option)
                    if error <= tolerance:
                        return error
        return None


def _finite_size(values: np.ndarray) -> float:
    return _size(np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0))

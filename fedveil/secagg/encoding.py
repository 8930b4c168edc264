"""From an update to words of the ring and back, with no way to overflow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedveil.secagg.errors import EncodingError, ImpossibleSumError
from fedveil.secagg.masking import Keystream

__all__ = ["MOST_FIGURES", "TAIL_WORDS", "DecodedSum", "Encoding", "check_names"]

Floats = NDArray[np.floating]

TAIL_WORDS = 64
"""Words of 64 bits behind the vector: weight, count, number clipped, figures; 512 bytes."""

_FIXED = 3
MOST_FIGURES = TAIL_WORDS - _FIXED
_FRACTION_BITS = 20
_LEAST_BITS = 4
_STEP = 32768
"""Coordinates at a time: they stay in cache, and a dot product of so few starts no threads."""

_DTYPES: dict[int, np.dtype[np.unsignedinteger]] = {16: np.dtype("<u2"), 32: np.dtype("<u4")}


@dataclass(frozen=True)
class DecodedSum:
    """What a sum over clients says.

    Parameters
    ----------
    mean : tuple of ndarray
        Weighted mean of the updates, float64, one array for each shape asked for.
    weight : float
        Sum of the weights.
    clients : int
        Clients in the sum.
    clipped : int
        How many of them had to clip their update.
    figures : dict of str to float
        Weighted sum of each figure.
    integers : ndarray, optional
        Shape (d,), int64: the sum of what was handed in as integers, in the place of a mean.
    """

    mean: tuple[NDArray[np.float64], ...]
    weight: float
    clients: int
    clipped: int
    figures: Mapping[str, float]
    integers: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Encoding:
    """How updates become words: public, and the same for all clients of a session.

    An update is clipped to L2 norm `clip_norm`, multiplied by weight / `max_weight` and by
    `scale`, and rounded stochastically. No coordinate then exceeds `limit` in magnitude, and
    `max_clients` x `limit` is below half of the ring: the sum cannot wrap.

    Parameters
    ----------
    dimension : int
        Coordinates of an update, d; 0 for figures alone.
    clip_norm : float
        L2 bound of an update.
    max_weight : float
        Largest weight of a client.
    max_clients : int
        Most clients in a sum.
    ring_bits : {16, 32}
        Bits of a word.

    Raises
    ------
    EncodingError
        If a bound is not positive and finite, or leaves too few bits.
    """

    dimension: int
    clip_norm: float
    max_weight: float
    max_clients: int
    ring_bits: int = 32

    def __post_init__(self) -> None:
        if self.ring_bits not in _DTYPES:
            raise EncodingError(f"ring_bits must be 16 or 32, not {self.ring_bits}")
        if not 0 <= self.dimension < 2**40:
            raise EncodingError(f"an update of {self.dimension} coordinates is impossible")
        if self.max_clients < 1 or self.value_bits < _LEAST_BITS:
            raise EncodingError(
                f"{self.ring_bits} bits leave {self.value_bits} for each of {self.max_clients} "
                f"clients, {_LEAST_BITS} are needed; take a larger ring or fewer clients"
            )
        for name, value in (("clip_norm", self.clip_norm), ("max_weight", self.max_weight)):
            if not (math.isfinite(value) and value > 0.0):
                raise EncodingError(f"{name} must be positive and finite, not {value:g}")
        if not math.isfinite(self.scale):
            raise EncodingError(f"clip_norm = {self.clip_norm:g} is too small to divide by")
        if self.max_weight > self._largest_figure:
            raise EncodingError(
                f"max_weight = {self.max_weight:g} must not exceed {self._largest_figure:g} for "
                f"{self.max_clients} clients"
            )

    @property
    def value_bits(self) -> int:
        """Bits that one client's coordinate has, sign included: ring - ceil(log2(n + 1))."""
        return self.ring_bits - (self.max_clients).bit_length()

    @property
    def limit(self) -> int:
        """Largest magnitude of one client's coordinate."""
        return int(2 ** (self.value_bits - 1) - 1)

    @property
    def scale(self) -> float:
        """Words a unit of the update: a coordinate of `clip_norm` rounds to at most `limit`."""
        return (self.limit - 1) / self.clip_norm

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Type of a word: unsigned, little-endian."""
        return _DTYPES[self.ring_bits]

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector with its tail."""
        return self.dimension * self.dtype.itemsize + TAIL_WORDS * 8

    @property
    def _largest_figure(self) -> float:
        return float(2 ** (62 - _FRACTION_BITS) / self.max_clients)

    def error_bound(self, clients: int, weight: float) -> float:
        """Bound what rounding changes in a coordinate of the mean.

        Each client's rounding moves a coordinate by less than one word.

        Parameters
        ----------
        clients : int
            Clients in the sum.
        weight : float
            Sum of their weights.
        """
        return clients * self.max_weight / (self.scale * weight)

    def empty(self) -> tuple[bytearray, NDArray[np.unsignedinteger], NDArray[np.uint64]]:
        """Return a zeroed buffer, and its vector and tail as views of it."""
        buffer = bytearray(self.vector_bytes)
        return (buffer, *self.views(buffer))

    def views(
        self, buffer: bytes | bytearray | memoryview
    ) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint64]]:
        """Return the vector and the tail in a buffer, without a copy.

        Raises
        ------
        EncodingError
            If the buffer has another length.
        """
        if len(buffer) != self.vector_bytes:
            raise EncodingError(
                f"a masked vector has {self.vector_bytes} bytes here, not {len(buffer)}"
            )
        vector = np.frombuffer(buffer, self.dtype, self.dimension)
        tail = np.frombuffer(buffer, np.dtype("<u8"), offset=vector.nbytes)
        return vector, tail

    def encode(
        self,
        update: Sequence[Floats],
        base: Sequence[Floats],
        weight: float,
        figures: Mapping[str, float],
        vector: NDArray[np.unsignedinteger],
        tail: NDArray[np.uint64],
        rounding_key: bytes | None = None,
    ) -> None:
        """Write update - base, the weight and the figures as words.

        Parameters
        ----------
        update, base : sequence of ndarray
            A client's arrays and the global ones, of equal shapes, any float type, `dimension`
            elements together.
        weight : float
            In (0, `max_weight`], taken down to a multiple of 2^-20.
        figures : Mapping of str to float
            What is to be summed, each already times the weight where a weighted sum is wanted;
            taken to multiples of 2^-20.
        vector, tail : ndarray
            As `empty` gives them; overwritten.
        rounding_key : bytes, optional
            32 bytes that the rounding follows from, so that it can be repeated; it need not be
            secret. By default fresh.

        Raises
        ------
        EncodingError
            If a value is NaN or infinite, the weight or a figure out of bounds, or the sizes do
            not fit.
        """
        weight_words = self._weight_words(weight)
        if sum(array.size for array in update) != self.dimension or (
            [array.shape for array in update] != [array.shape for array in base]
        ):
            raise EncodingError(
                f"the update has {sum(a.size for a in update)} coordinates, the session is for "
                f"{self.dimension} in arrays of the global model's shapes"
            )
        factor = self.scale * (weight_words / 2**_FRACTION_BITS) / self.max_weight
        norm = _round_into(vector, update, base, factor, Keystream(rounding_key))
        if not math.isfinite(norm):
            vector[:] = 0
            raise EncodingError("the update holds NaN or infinity; it does not leave the client")
        is_clipped = norm > self.clip_norm
        if is_clipped:
            factor *= self.clip_norm / norm
            _round_into(vector, update, base, factor, Keystream(rounding_key))
        self.write_tail(tail, weight=weight, is_clipped=is_clipped, figures=figures)

    def write_tail(
        self,
        tail: NDArray[np.uint64],
        *,
        weight: float,
        is_clipped: bool,
        figures: Mapping[str, float],
    ) -> None:
        """Write the words behind the vector: one client, its weight, its figures.

        Raises
        ------
        EncodingError
            If the weight or a figure is out of bounds, or the figures are too many.
        """
        tail[:] = 0
        tail[0], tail[1], tail[2] = self._weight_words(weight), 1, int(is_clipped)
        check_names(tuple(figures))
        for index, name in enumerate(sorted(figures)):
            tail[_FIXED + index] = self._figure_words(name, figures[name])

    def read_tail(self, tail: NDArray[np.uint64], clients: int, names: Sequence[str]) -> DecodedSum:
        """Return what the words behind a sum say; there is no mean in it.

        Raises
        ------
        ImpossibleSumError
            If honest clients cannot have produced it.
        """
        weight_words, count, clipped = (int(word) for word in tail[:_FIXED])
        most = clients * self.max_weight * 2**_FRACTION_BITS
        if count != clients or clipped > clients or not 0 < weight_words <= most:
            raise ImpossibleSumError(
                f"the sum over {clients} clients claims {count} clients, {clipped} clipped and a "
                f"weight of {weight_words / 2**_FRACTION_BITS:g}: some client sent a wrong vector"
            )
        words = tail.view(np.dtype("<i8"))[_FIXED : _FIXED + len(names)]
        figures = {
            name: int(word) / 2**_FRACTION_BITS for name, word in zip(names, words, strict=True)
        }
        return DecodedSum((), weight_words / 2**_FRACTION_BITS, clients, clipped, figures)

    def decode(
        self,
        vector: NDArray[np.unsignedinteger],
        tail: NDArray[np.uint64],
        clients: int,
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
    ) -> DecodedSum:
        """Return what an unmasked sum says.

        Raises
        ------
        ImpossibleSumError
            If honest clients cannot have produced it.
        EncodingError
            If the shapes do not fit.
        """
        summed = self.read_tail(tail, clients, names)
        signed = vector.view(np.dtype(f"<i{vector.itemsize}"))
        if len(signed) and max(-int(signed.min()), int(signed.max())) > clients * self.limit:
            raise ImpossibleSumError(
                f"a coordinate of the sum over {clients} clients passes {clients} x {self.limit}: "
                "some client sent a wrong vector"
            )
        factor = self.max_weight / (self.scale * summed.weight)
        if sum(map(math.prod, shapes)) != self.dimension:
            raise EncodingError(f"the shapes are not those of {self.dimension} coordinates")
        mean, start = [], 0
        for shape in shapes:
            size = math.prod(shape)
            mean.append((signed[start : start + size] * factor).reshape(shape))
            start += size
        return replace(summed, mean=tuple(mean))

    def _weight_words(self, weight: float) -> int:
        if not (math.isfinite(weight) and 0.0 < weight <= self.max_weight):
            raise EncodingError(
                f"the weight must be above 0 and at most max_weight = {self.max_weight:g}"
            )
        # Down, so that the weight never passes max_weight, on which the bound of a word rests.
        words = int(weight * 2**_FRACTION_BITS)
        if not words:
            raise EncodingError(f"the weight is below the least, 2^-{_FRACTION_BITS}")
        return words

    def _figure_words(self, name: str, figure: float) -> int:
        if not (math.isfinite(figure) and abs(figure) <= self._largest_figure):
            raise EncodingError(
                f"the figure {name} must be finite and at most {self._largest_figure:g} in "
                "magnitude"
            )
        return int(round(figure * 2**_FRACTION_BITS) % 2**64)


def check_names(names: Sequence[str]) -> None:
    """Refuse more figures than the tail holds, or one named twice.

    Raises
    ------
    EncodingError
        Which it is.
    """
    if len(names) > MOST_FIGURES:
        raise EncodingError(f"{len(names)} figures are too many; a message holds {MOST_FIGURES}")
    if len(set(names)) != len(names):
        raise EncodingError("a figure is named twice")


def _round_into(
    vector: NDArray[np.unsignedinteger],
    update: Sequence[Floats],
    base: Sequence[Floats],
    factor: float,
    stream: Keystream,
) -> float:
    """Write (update - base) x factor, rounded stochastically, as two's complement words.

    floor(x + u) with u uniform on the grid of 2^-16 in [0, 1) has mean x within 2^-16 of a word.

    Returns
    -------
    float
        The L2 norm of update - base; NaN or infinite where it or its square is. The words are
        good for nothing then, nor when it shows that the factor is too large for them.
    """
    signed = vector.view(np.dtype(f"<i{vector.itemsize}"))
    step = min(_STEP, max((array.size for array in update), default=0))
    raw = bytearray(2 * step + 16)
    view, drawn = memoryview(raw), np.frombuffer(raw, "<u2", step)
    buffer, uniform = np.empty(step), np.empty(step)
    square, at = 0.0, 0
    with np.errstate(over="ignore", invalid="ignore"):
        for new, old in zip(update, base, strict=True):
            flat_new, flat_old = new.reshape(-1), old.reshape(-1)
            for start in range(0, new.size, _STEP):
                end = min(start + _STEP, new.size)
                size = end - start
                part = buffer[:size]
                np.subtract(flat_new[start:end], flat_old[start:end], out=part, dtype=np.float64)
                square += _square(part)
                # Scaled up and down again: cheaper than scaling the draws while they are converted.
                part *= factor * 2.0**16
                stream.fill(view, 2 * size)
                uniform[:size] = drawn[:size]
                part += uniform[:size]
                part *= 2.0**-16
                np.floor(part, out=part)
                signed[at : at + size] = part
                at += size
    return math.sqrt(square) if square >= 0.0 else math.nan


def _square(values: NDArray[np.float64]) -> float:
    """Return the sum of squares, in pieces too short for OpenBLAS to wake a second thread."""
    pieces = (values[start : start + 8192] for start in range(0, len(values), 8192))
    return float(sum(piece @ piece for piece in pieces))

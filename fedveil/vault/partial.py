"""Single tensors out of an encrypted safetensors file, without decrypting the rest.

What is returned is authentic and whole: every byte of it, and of the safetensors header that says
where it lies, comes from a segment that was verified in its place of this one stream. The
associated data binds the length of the plaintext, so which segment is the last one is known, and a
stream that was cut or lengthened there is found when that segment is read.

What was not read is not verified, and may be damaged or missing. The signature is not checked: it
covers a digest of the whole stream. So a partial read is for who trusts everybody that has the
key; who does not must read the whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from fedveil.vault.buffers import SEGMENT_BYTES, ReadAt, new_buffer, wipe
from fedveil.vault.errors import TensorError
from fedveil.vault.parallel import for_each
from fedveil.vault.segments import Segments
from fedveil.vault.stream import SegmentOpener
from fedveil.vault.tensors import Array, Place, head_bytes, places

__all__ = ["read_tensors"]


def read_tensors(
    names: Collection[str],
    key: bytes,
    read: ReadAt,
    start: int,
    plaintext_bytes: int,
    aad: bytes,
    *,
    threads: int = 1,
) -> dict[str, Array]:
    """Return some tensors of an encrypted safetensors file.

    Parameters
    ----------
    names : collection of str
        Which; none at all verifies the safetensors header alone.
    key, read, start, aad, threads
        As for `fedveil.vault.stream.decrypt_into`.
    plaintext_bytes : int
        Length of the whole plaintext. It must be bound by `aad`.

    Returns
    -------
    dict of str to ndarray
        In the order of `names`; each array has memory of its own.

    Raises
    ------
    TensorError
        If there is no tensor of that name, or the plaintext is no safetensors file.
    VaultError
        If a segment does not open: the errors of `fedveil.vault.stream.decrypt_into`. What had
        been decrypted is overwritten with zeros.
    """
    opener = SegmentOpener(key, read, start, Segments(plaintext_bytes), aad)
    by_name = {place.name: place for place in _read_places(opener, threads)}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise TensorError(f"there is no tensor {unknown[0]!r} among the {len(by_name)} stored")
    wanted = [by_name[name] for name in names]
    outs = [new_buffer(place.end - place.begin) for place in wanted]
    # The views come first, so that a shape which numpy refuses is met before there is plaintext.
    tensors = {place.name: place.view(out, 0) for place, out in zip(wanted, outs, strict=True)}
    ranges = [(place.begin, out) for place, out in zip(wanted, outs, strict=True)]
    _read_ranges(opener, ranges, threads)
    return tensors


def _read_places(opener: SegmentOpener, threads: int) -> list[Place]:
    """Return where the arrays lie; what was decrypted for that is overwritten with zeros."""
    total = opener.segments.plaintext_bytes
    start = new_buffer(min(total, opener.segments.plain(0).stop))
    head = start
    try:
        _read_ranges(opener, [(0, start)], threads)
        size = head_bytes(start, total)
        if size > len(start):
            head = new_buffer(size)
            _read_ranges(opener, [(0, head)], threads)
        return places(head[:size], total)
    finally:
        wipe(start)
        wipe(head)


def _read_ranges(opener: SegmentOpener, ranges: list[tuple[int, memoryview]], threads: int) -> None:
    """Fill buffers with the plaintext from their positions on; zero them if anything fails."""
    shares: dict[int, list[tuple[int, memoryview]]] = {}
    for begin, out in ranges:
        if len(out) > 0:
            for index in opener.segments.holding(begin, begin + len(out)):
                shares.setdefault(index, []).append((begin, out))
    touched = sorted(shares)

    def make() -> Callable[[int], None]:
        sealed, opened = (memoryview(bytearray(SEGMENT_BYTES)) for _ in range(2))

        def work(number: int) -> None:
            index = touched[number]
            place = opener.segments.plain(index)
            plain = opened[: place.stop - place.start]
            try:
                opener.open(index, sealed, plain)
                for begin, out in shares[index]:
                    first = max(begin, place.start)
                    last = min(begin + len(out), place.stop)
                    part = plain[first - place.start : last - place.start]
                    out[first - begin : last - begin] = part
            finally:
                wipe(plain)

        return work

    try:
        for_each(len(touched), threads, make)
    except BaseException:
        for _, out in ranges:
            wipe(out)
        raise

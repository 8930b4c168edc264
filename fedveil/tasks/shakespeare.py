"""The task `shakespeare`: the next character of a speaking role."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedveil.tasks.base import ModelInputs
from fedveil.tasks.forms import TextForm
from fedveil.tasks.models import CharacterCnn
from fedveil.tasks.objectives import MultiClassTask
from fedveil.tasks.pooled import Pool, PooledTask

__all__ = ["Shakespeare"]

_WINDOW = 80
# A record is a window and the character after it, and no character is in two records: were
# windows to overlap, one line of text would be in dozens, and record-level privacy would say
# nothing about the line.
_RECORD = _WINDOW + 1
_TEST_FRACTION = 0.2
_FILE = "shakespeare_speeches.jsonl.gz"

# A fixed public alphabet: 0 is any other character, 1 a line break, then printable ASCII.
_ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127))
_CODE = {character: code for code, character in enumerate(_ALPHABET, start=1)}
_VOCABULARY = 1 + len(_ALPHABET)


class Shakespeare(MultiClassTask, PooledTask):
    """Next-character prediction in 37 plays, "natural" by (play, role).

    After McMahan et al. 2017 and LEAF (Caldas et al. 2018), from another edition and with
    windows that do not overlap, so figures do not compare with theirs. The speeches of a role,
    joined by line breaks, are cut into pieces of 81 characters: the inputs are int64 codes,
    shape (n, 80), the target is the code of the last character. What is left over is dropped,
    and with it every role of fewer than 81 characters. The last fifth of the pieces of each
    role, rounded down, is the public test set.
    """

    name: ClassVar[str] = "shakespeare"
    nominal_records: ClassVar[int] = 42_609
    data_files: ClassVar[Mapping[str, str]] = {
        _FILE: "c72236b1e6ce0eaf8cdaca04c2abc58f9233dc4dd8af04bea0babe65cf3df1c5"
    }
    data_source: ClassVar[str] = (
        "The Complete Works of William Shakespeare, http://shakespeare.mit.edu (37 plays, one"
        " JSON object a speech with play, act, scene, role and text, gzipped)"
    )
    natural_groups: ClassVar[str | None] = "role"
    class_names: ClassVar[tuple[str, ...]] = (
        *("any other character", "line break", "space"),
        *_ALPHABET[2:],
    )

    def model(self) -> nn.Module:
        """Return the convolutional model of the next character."""
        return CharacterCnn(_VOCABULARY, _WINDOW)

    def model_inputs(self) -> ModelInputs:
        """Return the inputs that the class describes."""
        return ModelInputs((_WINDOW,), torch.int64, _VOCABULARY)

    def form(self) -> TextForm:
        """Return the text; its last characters count."""
        return TextForm(
            alphabet=_ALPHABET, length=_WINDOW, typical="To be, or not to be, that is the questio"
        )

    def read_pool(self) -> Pool:
        """Read the speeches and cut them into records."""
        roles = _roles(self.files.read(_FILE))
        pieces = [_pieces(roles[role]) for role in sorted(roles)]
        pieces = [role for role in pieces if len(role)]
        held_out = [int(_TEST_FRACTION * len(role)) for role in pieces]
        kept = [len(role) - last for role, last in zip(pieces, held_out, strict=True)]
        train = np.concatenate([role[:n] for role, n in zip(pieces, kept, strict=True)])
        test = np.concatenate([role[n:] for role, n in zip(pieces, kept, strict=True)])
        return Pool(
            x=train[:, :-1],
            labels=train[:, -1].astype(np.int64),
            test_x=test[:, :-1],
            test_labels=test[:, -1].astype(np.int64),
            groups=np.repeat(np.arange(len(pieces)), kept),
        )

    def inputs(self, x: NDArray[np.generic]) -> Tensor:
        """Return character codes."""
        return torch.from_numpy(x.astype(np.int64))

    def targets(self, labels: NDArray[np.int64]) -> Tensor:
        """Return the code of the next character."""
        return torch.from_numpy(labels)


def _roles(data: bytes) -> dict[tuple[str, str], str]:
    speeches: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in gzip.decompress(data).decode("utf-8").splitlines():
        speech = json.loads(line)
        speeches[speech["play"], speech["role"]].append(speech["text"])
    return {role: "\n".join(texts) for role, texts in speeches.items()}


def _pieces(text: str) -> NDArray[np.uint8]:
    count = len(text) // _RECORD
    codes = [_CODE.get(character, 0) for character in text[: count * _RECORD]]
    return np.array(codes, dtype=np.uint8).reshape(count, _RECORD)

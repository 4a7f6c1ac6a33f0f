"""Code tables: how likely each code is at each place, counted on training images and kept beside the tokenizer.

    ids (n, K) --count--> (K, N) --shrink towards the counts of all places together--> levels, one byte each

A tokenizer without tables has flat ones, under which all codes are equally likely.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float64, Int, Int32, Int64, UInt8
from torch import Tensor

from channelvq.car.data import tokenizer_digest
from channelvq.codec.container import MODEL_DIGEST
from channelvq.codec.levels import PER_OCTAVE
from channelvq.errors import InputError
from channelvq.pretrained import CODE_TABLES, read_metadata, read_weights, tensor_sha256, write_weights
from channelvq.tokenizer import CVQTokenizer

_OWNER = "tokenizer_digest"
DEEPEST = 255
# How many tokens' worth of belief in the shared counts, tried in turn; the one that codes unseen images best is kept.
STRENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclass(frozen=True, eq=False)
class CodeTables:
    """depths: how many eighths of an octave each code lies under the likeliest of its place, at most 255."""

    depths: UInt8[Tensor, "K N"]
    tokenizer: str
    kind: ClassVar[Literal["static"]] = "static"

    @property
    def digest(self) -> bytes:
        """By which a file names the tables that it was written with."""
        return bytes.fromhex(tensor_sha256(self.depths))[:MODEL_DIGEST]

    def start(self, captions: list[str]) -> "CodeTables":
        """The walk through the tokens of some pictures: the same for all."""
        return self

    def levels(self, ids: Int64[Tensor, "B k"], shifts: list[int]) -> Int32[np.ndarray, "B N"]:
        """Levels of the token after the first k, for each picture."""
        row = -self.depths[ids.shape[1]].numpy().astype(np.int32)
        return np.broadcast_to(row, (len(ids), len(row)))

    def shares(self) -> Float64[Tensor, "K N"]:
        """The probability of each code at each place."""
        weights = torch.exp2(-self.depths.double() / PER_OCTAVE)
        return weights / weights.sum(1, keepdim=True)

    def bits(self, ids: Int[Tensor, "n K"]) -> Float64[Tensor, "n K"]:
        """What these tables say that each token takes, before the coder."""
        return -self.shares().log2()[torch.arange(ids.shape[1]), ids.long()]

    def save(self, folder: Path) -> None:
        """Write them beside a tokenizer."""
        write_weights(folder / CODE_TABLES, {"depths": self.depths}, {"format": "pt", _OWNER: self.tokenizer})

    @classmethod
    def of(cls, tokenizer: CVQTokenizer) -> "CodeTables":
        """Those in the tokenizer's folder, or flat ones where it has none.

        Raises InputError for a file that is damaged, or that belongs to another tokenizer.
        """
        shape, digest = (tokenizer.num_tokens, tokenizer.codebook_size), tokenizer_digest(tokenizer)
        path = None if tokenizer.folder is None else tokenizer.folder / CODE_TABLES
        if path is None or not path.is_file():
            return cls(torch.zeros(shape, dtype=torch.uint8), digest)
        depths, owner = read_weights(path).get("depths"), read_metadata(path).get(_OWNER)
        if owner != digest or depths is None or depths.shape != shape or depths.dtype != torch.uint8:
            raise InputError(
                f"{path}: these code tables belong to another tokenizer ({owner}, this one is {digest}); make them "
                "anew with `cvq tables`, or delete the file: then all codes count as equally likely"
            )
        return cls(depths, digest)

    @classmethod
    def fit(cls, tokenizer: CVQTokenizer, ids: Int[Tensor, "n K"]) -> "CodeTables":
        """From the ids of training images; a tenth of them, drawn at random, chooses how far to shrink.

        Raises InputError for ids that the tokenizer does not give, and fewer than 20 images.
        """
        ids = tokenizer.check_ids(ids).cpu()
        if ids.shape[1] != tokenizer.num_tokens or len(ids) < 20:
            raise InputError(
                f"code tables: expected at least 20 images with all {tokenizer.num_tokens} tokens, "
                f"got {len(ids)} of {ids.shape[1]}"
            )
        digest, size = tokenizer_digest(tokenizer), tokenizer.codebook_size
        ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
        held = ids[-(len(ids) // 10) :]
        seen = _counts(ids[: len(ids) - len(held)], size)
        tried = {strength: cls(_depths(seen, strength), digest) for strength in STRENGTHS}
        best = min(tried, key=lambda strength: float(tried[strength].bits(held).sum()))
        return cls(_depths(_counts(ids, size), best), digest)


def _counts(ids: Int64[Tensor, "n K"], size: int) -> Float64[Tensor, "K N"]:
    return torch.stack([torch.bincount(column, minlength=size) for column in ids.unbind(1)]).double()


def _depths(counts: Float64[Tensor, "K N"], strength: float) -> UInt8[Tensor, "K N"]:
    pooled = counts.sum(0) + 1.0  # no code is impossible
    shares = counts + strength * pooled / pooled.sum()
    octaves = shares.log2()
    depths = (octaves.amax(1, keepdim=True) - octaves) * PER_OCTAVE
    return depths.round().clamp(max=DEEPEST).to(torch.uint8)

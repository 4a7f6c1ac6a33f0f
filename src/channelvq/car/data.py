"""Images as ids, tokenized once: training reads ids and captions from the cache.

    ~/.cache/channelvq/ids/<key>/0000000-0001024.safetensors (ids) and .jsonl (captions, keys), 0001024-0002048...

The key holds everything that decides the ids: the tokenizer's weights, the data's settings, the sizes and times of
change of a user's files, and also the first samples themselves, since the code that draws them may change. A shard is
there whole or not at all, and made again where a byte of it has changed: so tokenizing goes on where it was
interrupted, and a larger set begins with the whole shards of a smaller one.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Int32
from torch import Tensor

from channelvq.config import to_dict
from channelvq.data.fetched.packages import cache_root
from channelvq.data.source import Sample
from channelvq.data.stream import Mixture
from channelvq.files import parse_json, write_text_atomically
from channelvq.images import normalize
from channelvq.pretrained import read_metadata, read_weights, tensors_sha256, weights_sha256, write_weights
from channelvq.tokenizer import CVQTokenizer

SHARD_IMAGES = 1024
BATCH = 64  # images in memory at a time
FIRST_SAMPLES = 8
_DIGEST = "sha256"  # of ids and captions, in the file of the ids


@dataclass(frozen=True, eq=False)
class TokenSet:
    """n images: ids (n, C), and for each its caption and the key of its source."""

    ids: Int32[Tensor, "n C"]
    captions: tuple[str, ...]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def subset(self, places: Sequence[int]) -> "TokenSet":
        """The images at these places."""
        captions, keys = (tuple(texts[place] for place in places) for texts in (self.captions, self.keys))
        return TokenSet(self.ids[list(places)], captions, keys)


def tokenizer_digest(tokenizer: CVQTokenizer) -> str:
    """The first 16 hex digits of the SHA-256 of a tokenizer's settings and weights."""
    settings = json.dumps(to_dict(tokenizer.config), sort_keys=True)
    return hashlib.sha256(f"{settings}/{weights_sha256(tokenizer)}".encode()).hexdigest()[:16]


def tokenized(
    tokenizer: CVQTokenizer,
    data: Mixture,
    count: int,
    settings: str,
    *,
    cache: Path | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> TokenSet:
    """The first `count` images of a mixture as ids, from the cache where they are there.

    settings: a digest of what the mixture was built from. cache: instead of $CHANNELVQ_CACHE or ~/.cache/channelvq.
    progress is given a line of text for each shard that has to be made.
    """
    folder = cache_root(cache) / "ids" / _key(tokenizer, data, settings)
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for start in range(0, count, SHARD_IMAGES):
        positions = range(start, min(start + SHARD_IMAGES, count))
        path = folder / f"{start:07d}-{positions.stop:07d}.safetensors"
        shard = _read(path)
        if shard is None:
            if progress:
                progress(f"tokenizing images {start} to {positions.stop} of {count}, once")
            ids, samples = _tokenize(tokenizer, data, positions)
            _write(path, ids, samples)
            shard = ids, [sample.text for sample in samples], [sample.key for sample in samples]
        shards.append(shard)
    ids, captions, keys = zip(*shards, strict=True)
    return TokenSet(torch.cat(ids), tuple(chain(*captions)), tuple(chain(*keys)))


def _key(tokenizer: CVQTokenizer, data: Mixture, settings: str) -> str:
    content = hashlib.sha256(f"{tokenizer_digest(tokenizer)}/{settings}/{data.seed}{data.stamp()}".encode())
    for position in range(FIRST_SAMPLES):
        sample = data[position]
        content.update(sample.image.contiguous().numpy().tobytes())
        content.update(json.dumps([sample.text, sample.key]).encode())
    return content.hexdigest()[:16]


def _tokenize(tokenizer: CVQTokenizer, data: Mixture, positions: range) -> tuple[Tensor, list[Sample]]:
    parts, samples = [], []
    for start in positions[::BATCH]:
        batch = [data[position] for position in range(start, min(start + BATCH, positions.stop))]
        parts.append(tokenizer.tokenize(normalize(torch.stack([sample.image for sample in batch]))).cpu())
        samples += batch
    return torch.cat(parts).to(torch.int32), samples


def _write(ids_path: Path, ids: Tensor, samples: Sequence[Sample]) -> None:
    lines = "".join(json.dumps({"text": sample.text, "key": sample.key}) + "\n" for sample in samples)
    # The ids last: where they are, the shard is whole. Two processes write the same.
    write_text_atomically(ids_path.with_suffix(".jsonl"), lines)
    write_weights(ids_path, {"ids": ids}, {_DIGEST: tensors_sha256({"ids": ids}, lines)})


def _read(path: Path) -> tuple[Tensor, list[str], list[str]] | None:
    """Ids, captions and keys of a shard; None where a part of it is missing or not as it was written."""
    try:
        ids, text = read_weights(path)["ids"], path.with_suffix(".jsonl").read_bytes().decode()
        if read_metadata(path).get(_DIGEST) != tensors_sha256({"ids": ids}, text):
            return None
        lines = [parse_json(line) for line in text.splitlines()]
        return ids, [line["text"] for line in lines], [line["key"] for line in lines]
    except (OSError, ValueError, KeyError):
        return None

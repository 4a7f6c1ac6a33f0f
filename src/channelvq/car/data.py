"""Images as ids, tokenized once: training reads ids and captions from the cache.

    ~/.cache/channelvq/ids/<key>/0000000-0001024.safetensors (ids) and .jsonl (captions, keys), 0001024-0002048...

The key holds everything that decides the ids: the tokenizer's weights, the data's settings, the sizes and times of
change of a user's files, and also the first samples themselves, since the code that draws them may change. A shard is
there whole or not at all, and made again where a byte of it has changed: so tokenizing goes on where it was
interrupted, and a larger set begins with the whole shards of a smaller one.
"""

import hashlib
import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from channelvq.config import to_dict
from channelvq.data.fetched.packages import cache_root
from channelvq.data.files.token_shards import TokenSet, joined, read_token_shard, write_token_shard
from channelvq.data.files.tokens import TokenSource
from channelvq.data.source import Sample
from channelvq.data.stream import Mixture
from channelvq.errors import InputError
from channelvq.images import normalize
from channelvq.pretrained import weights_sha256
from channelvq.tokenizer import CVQTokenizer

SHARD_IMAGES = 1024
BATCH = 64  # images in memory at a time
FIRST_SAMPLES = 8


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
        shard = _kept(path)
        if shard is None:
            if progress:
                progress(f"tokenizing images {start} to {positions.stop} of {count}, once")
            shard = _tokenize(tokenizer, data, positions)
            write_token_shard(path, shard.ids, shard.captions, shard.keys)
        shards.append(shard)
    return joined(shards)


def _kept(path: Path) -> TokenSet | None:
    """A shard of the cache; None where it is missing or not as it was written."""
    try:
        return read_token_shard(path)
    except InputError:
        return None


def stored(data: Mixture, tokenizer: CVQTokenizer) -> tuple[TokenSet, Callable[[int], int]]:
    """All samples of a mixture of token shards, and which of them stands at a position of the mixture.

    Raises InputError for shards of another tokenizer, and for a source of pictures.
    """
    digest, parts = tokenizer_digest(tokenizer), []
    for name, source in zip(data.names, data.sources, strict=True):
        if not isinstance(source, TokenSource):
            raise InputError(f"data source {name!r} holds pictures, others hold tokens; give all as tokens, or none")
        source.check_tokenizer(digest, tokenizer.num_tokens, tokenizer.codebook_size)
        parts.append(source.tokens)
    first = list(accumulate(map(len, parts), initial=0))

    def row(position: int) -> int:
        source, index = data.locate(position)
        return first[source] + index

    return joined(parts), row


def _key(tokenizer: CVQTokenizer, data: Mixture, settings: str) -> str:
    content = hashlib.sha256(f"{tokenizer_digest(tokenizer)}/{settings}/{data.seed}{data.stamp()}".encode())
    for position in range(FIRST_SAMPLES):
        sample = data[position]
        content.update(sample.image.contiguous().numpy().tobytes())
        content.update(json.dumps([sample.text, sample.key]).encode())
    return content.hexdigest()[:16]


def _tokenize(tokenizer: CVQTokenizer, data: Mixture, positions: range) -> TokenSet:
    parts: list[Tensor] = []
    samples: list[Sample] = []
    for start in positions[::BATCH]:
        batch = [data[position] for position in range(start, min(start + BATCH, positions.stop))]
        parts.append(tokenizer.tokenize(normalize(torch.stack([sample.image for sample in batch]))).cpu())
        samples += batch
    captions, keys = (tuple(getattr(sample, name) for sample in samples) for name in ("text", "key"))
    return TokenSet(torch.cat(parts).to(torch.int32), captions, keys)

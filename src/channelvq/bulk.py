"""Many images as tokens: tar shards in, for each of them one token shard out, whole or not there.

    images-00000.tar ... -> images-00000.safetensors, images-00000.jsonl ... and manifest.json, anew after each

A tar is the unit of work. A call that was stopped goes on with those that the manifest does not list; what the stopped
one had begun is made from its first image on. So every image is in the tokens once, whatever was killed when.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from channelvq.car.data import tokenizer_digest
from channelvq.data.files.checked import decoding
from channelvq.data.files.shard_index import Located, ShardFile, ShardPath, decode, locate, shard_file
from channelvq.data.files.shards import shard_paths
from channelvq.data.files.token_shards import (
    IDS,
    MANIFEST,
    TokenManifest,
    TokenShard,
    id_type,
    read_manifest,
    size_of,
    write_manifest,
    write_token_shard,
)
from channelvq.errors import InputError
from channelvq.images import Skipped, normalize, resize_crop, to_tensor
from channelvq.on_ray import outcomes
from channelvq.tokenizer import CVQTokenizer

Engine = Literal["local", "ray"]
DECODED = 16  # images that a thread decodes in one go
BATCH = 64  # images in memory at a time, and as many again that are being decoded


@dataclass(frozen=True)
class Job:
    """What every process has to know. tokenizer, device: as for `from_pretrained`; digest: of its content."""

    tokenizer: str
    device: str
    digest: str
    caption_field: str
    folder: Path


def find_shards(shards: str | Path) -> list[ShardPath]:
    """The tars of a folder, or those that a path with braces for numbers names; InputError where there is none."""
    if not Path(shards).is_dir():
        return shard_paths(str(shards))
    if not (paths := sorted(path for path in Path(shards).glob("*.tar") if path.is_file())):
        raise InputError(f"folder {str(shards)!r}: no .tar file in it; `cvq data shard` makes some of images")
    return [*paths]


def tokenize_shards(
    shards: str | Path | Sequence[ShardPath],
    folder: str | Path,
    tokenizer: str | Path = "bundled",
    *,
    caption_field: str = "caption",
    device: str = "cpu",
    engine: Engine = "local",
    workers: int | None = None,
    say: Callable[[str], None] | None = None,
) -> TokenManifest:
    """Tokenize the images of tar shards into token shards in `folder`; only what is not there yet.

    shards: as for `find_shards`, or what that gave. tokenizer, device: as for `CVQTokenizer.from_pretrained`. Pictures
    are cropped to the centred square. caption_field: of .json members. engine: local, processes of this machine, each
    with its own tokenizer and its share of the threads; ray, those of a cluster (`on_ray.outcomes`), a thread each.
    workers: how many; None: 1, by Ray as many as there are processors, or GPUs where `device` is one. say: is told of
    each shard that is done, in a line. No other process may write to `folder` meanwhile (`files.only_writer`).
    Members that cannot be used are left out, and listed in the manifest with their reasons. Raises InputError where
    the folder holds tokens of another tokenizer, or of other tars by these names; and, once all other tars are done,
    for those that are cut off or no tar.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers: expected at least 1, got {workers}")
    paths, folder = list(shards) if not isinstance(shards, (str, Path)) else find_shards(shards), Path(folder)
    by_name = _named(paths)
    model = CVQTokenizer.from_pretrained(tokenizer, device=device)
    job = Job(str(tokenizer), device, tokenizer_digest(model), caption_field, folder)
    manifest = _begun(job, model, by_name)
    write_manifest(folder, manifest)
    todo = [by_name[name] for name in manifest.pending if name in by_name]
    failed: list[InputError] = []
    begin, made = time.monotonic(), 0
    if engine == "ray":
        each = outcomes(partial(_on_ray, job), todo, at_once=workers, gpu=model.device.type == "cuda") if todo else ()
    else:
        each = _local(job, model, todo, min(workers or 1, len(todo)))
    for done in each:
        if isinstance(done, InputError):
            failed.append(done)
            continue
        manifest = _with(manifest, done)
        write_manifest(folder, manifest)
        made += done.images
        if say is not None:
            rate = made / max(time.monotonic() - begin, 1e-9)
            skipped = f", {len(done.skipped)} skipped" if done.skipped else ""
            whole = len(by_name) - sum(name in by_name for name in manifest.pending)
            say(f"{done.name}: {done.images} image(s){skipped}; {whole} of {len(by_name)} shards, {rate:.0f} images/s")
    if failed:
        raise InputError(
            f"{len(failed)} of {len(by_name)} shards cannot be read, the others are done; once they are mended the "
            f"same command goes on. The first: {failed[0]}"
        )
    if not manifest.counts()["images"]:
        first = next((reason for shard in manifest.shards for _, reason in shard.skipped), "the shards are empty")
        raise InputError(f"{folder}: no image to tokenize; the first: {first}")
    return manifest


# What there is to do


def _named(paths: Iterable[ShardPath]) -> dict[str, ShardPath]:
    """Tars by the names of their token shards, in their order."""
    named: dict[str, ShardPath] = {}
    for path in paths:
        if (name := path.stem) in named:
            raise InputError(f"shards {str(named[name])!r} and {str(path)!r} have one name; give each a folder")
        if name.startswith("."):
            raise InputError(f"shard {str(path)!r}: hidden files are no shards; rename it")
        named[name] = path
    return named


def _begun(job: Job, model: CVQTokenizer, by_name: dict[str, ShardPath]) -> TokenManifest:
    """What the folder holds, with all that is to be done now as pending; InputError where it is of something else."""
    manifest = TokenManifest(
        job.tokenizer, job.digest, model.num_tokens, model.codebook_size, job.caption_field, pending=tuple(by_name)
    )
    if not (job.folder / MANIFEST).exists():
        return manifest
    before = read_manifest(job.folder)
    _check_same(job, before)
    kept = tuple(shard for shard in before.shards if shard.is_there(job.folder))
    for shard in kept:
        path = by_name.get(shard.name)
        if path is not None and not shard.is_of(shard_file(path).stamp):
            raise InputError(
                f"{job.folder / shard.name}{IDS} was made from another shard than {path}, or before that changed; "
                "remove it to make it again, or choose another folder"
            )
    names = {shard.name for shard in kept}
    asked = [*before.pending, *(shard.name for shard in before.shards), *by_name]
    return replace(before, shards=kept, pending=tuple(name for name in dict.fromkeys(asked) if name not in names))


def _check_same(job: Job, before: TokenManifest) -> None:
    if before.tokenizer_digest != job.digest:
        raise InputError(
            f"{job.folder} holds tokens of another tokenizer (digest {before.tokenizer_digest}, loaded as "
            f"{before.tokenizer!r}) than {job.tokenizer!r} (digest {job.digest}); choose another folder"
        )
    if before.caption_field != job.caption_field:
        raise InputError(
            f"{job.folder} was begun with --caption-field {before.caption_field}, now it is {job.caption_field}; "
            "choose another folder"
        )


def _with(manifest: TokenManifest, done: TokenShard) -> TokenManifest:
    """The manifest with one more shard, in the order of the names whatever came first."""
    shards = sorted((*manifest.shards, done), key=lambda shard: shard.name)
    pending = tuple(name for name in manifest.pending if name != done.name)
    return replace(manifest, shards=tuple(shards), pending=pending)


# One shard


def tokenize_shard(job: Job, model: CVQTokenizer, path: ShardPath) -> TokenShard:
    """Write the token shard of one tar; InputError where that is missing, no plain tar, or cut off."""
    shard = shard_file(path)
    ids, captions, keys = [torch.empty(0, model.num_tokens, dtype=torch.int64)], [], []
    with shard.whole() as whole:
        samples, skipped = locate(shard, whole)
        if not samples and not skipped:
            skipped = [Skipped(path, f"shard {str(path)!r} holds no image")]
        for images, texts, names in _decoded(shard, samples, job.caption_field, model.image_size, skipped):
            ids.append(model.tokenize(normalize(images)).cpu())
            captions += texts
            keys += names
    place = job.folder / f"{path.stem}{IDS}"
    write_token_shard(place, torch.cat(ids).to(id_type(model.codebook_size)), captions, keys)
    left_out = tuple((str(entry.path), entry.reason) for entry in skipped)
    size = size_of(job.folder, path.stem)
    if size is None:
        raise InputError(f"{place} is gone: something else writes to {job.folder}; choose another folder")
    return TokenShard(path.stem, len(keys), sum(map(bool, captions)), size, shard.stamp, left_out)


def _decoded(
    shard: ShardFile, samples: Sequence[Located], caption_field: str, size: int, skipped: list[Skipped]
) -> Iterator[tuple[UInt8[Tensor, "b 3 size size"], list[str], list[str]]]:
    """Pictures, captions and keys, a batch at a time while threads decode the next; skipped: takes the others."""

    def square(sample: Located) -> tuple[Tensor, str, str] | Skipped:
        found = decode(shard, sample, caption_field)
        if isinstance(found, Skipped):
            return found
        return to_tensor(resize_crop(found[0], size)), found[1], sample.key

    def squares(some: Sequence[Located]) -> list[tuple[Tensor, str, str] | Skipped]:
        return [square(sample) for sample in some]

    with decoding() as pool:
        ahead: deque[Iterator[list[tuple[Tensor, str, str] | Skipped]]] = deque()
        for start in range(0, len(samples) + BATCH, BATCH):
            batch = samples[start : start + BATCH]
            # Some at a time: handing small pictures to threads one by one takes longer than decoding them.
            some = [batch[first : first + DECODED] for first in range(0, len(batch), DECODED)]
            ahead.append(pool.map(squares, some))  # begins at once
            if len(ahead) < 2:
                continue
            found = [one for part in ahead.popleft() for one in part]
            skipped += [entry for entry in found if isinstance(entry, Skipped)]
            if good := [entry for entry in found if not isinstance(entry, Skipped)]:
                images, texts, names = zip(*good, strict=True)
                yield torch.stack(images), list(texts), list(names)


# Processes

_worker: dict[str, CVQTokenizer] = {}  # of such a process, by its digest


def _local(
    job: Job, model: CVQTokenizer, paths: Sequence[ShardPath], workers: int
) -> Iterator[TokenShard | InputError]:
    """The token shards of some tars as they are done, or why there is none."""
    if workers <= 1:
        yield from (_outcome(job, model, path) for path in paths)
        return
    threads = max(1, torch.get_num_threads() // workers)
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    try:
        with ProcessPoolExecutor(workers, spawn, _begin_worker, (job, threads)) as pool:
            try:
                for future in as_completed([pool.submit(_in_worker, job, path) for path in paths]):
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)
    except BrokenProcessPool:
        raise InputError(
            f"a worker process of {workers} ended before its work was done, perhaps for want of memory; give the same "
            "command again with fewer --workers, it goes on"
        ) from None


def _begin_worker(job: Job, threads: int) -> None:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # without a traceback of each
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _load(job, threads)


def _load(job: Job, threads: int) -> None:
    torch.set_num_threads(threads)
    model = CVQTokenizer.from_pretrained(job.tokenizer, device=job.device)
    _worker[tokenizer_digest(model)] = model


def _end_with_parent() -> None:
    # A process of a pool whose parent was killed waits for ever otherwise, or writes where another one does by now.
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _in_worker(job: Job, path: ShardPath) -> TokenShard | InputError:
    if job.digest not in _worker:
        return InputError(f"tokenizer {job.tokenizer!r} has changed since the command began; give it again")
    return _outcome(job, _worker[job.digest], path)


def _on_ray(job: Job, path: ShardPath) -> TokenShard | InputError:
    try:
        if job.digest not in _worker:  # Ray keeps its processes for the next task
            _load(job, threads=1)
    except InputError as error:  # a machine that does not see the tokenizer
        return error
    return _in_worker(job, path)


def _outcome(job: Job, model: CVQTokenizer, path: ShardPath) -> TokenShard | InputError:
    try:
        return tokenize_shard(job, model, path)
    except InputError as error:
        return error

"""Token shards as a source of generators: ids and captions, read without the pictures that they were made from."""

from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT
from channelvq.data.files.collection import Collection
from channelvq.data.files.remote import fetch, is_remote, remote_path
from channelvq.data.files.token_shards import (
    IDS,
    LINES,
    MANIFEST,
    TokenManifest,
    TokenSet,
    read_manifest,
    read_token_folder,
)
from channelvq.data.options import ImageOptions, Shares, SplitOrAll
from channelvq.data.split import Split, split_mask, split_number
from channelvq.errors import InputError


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TokensConfig(Shares):
    """The token shards in the folder `root`, for recipes of generators.

    root: a folder that `cvq data tokenize` wrote, or its http://, https:// or s3:// address (extra remote).
    validation_root, test_root: folders of these splits, where they are given; `root` then has no share of them.
    captioned: leave out images without a caption.
    """

    root: str
    kind: Literal["tokens"] = "tokens"
    weight: NonNegativeFloat = 1.0
    validation_root: str | None = None
    test_root: str | None = None
    captioned: bool = False

    def build(self, size: int, split: Split) -> "TokenSource":
        """The source of one split; size: of the pictures that these were."""
        root, share, shares = self.place(split, self.root, self.validation_root, self.test_root)
        return TokenSource(root, size, share, shares, captioned=self.captioned)


class TokenSource(Collection):
    """The images of token shards as ids (n, C), with captions and keys: `tokens`.

    root: the folder, or its address, whose files are fetched at each start. size: side of the pictures, in pixels.
    split: which share to use, by the hash of a picture's name in its tar, so it is the split that the picture itself is
    in. captioned: leave out images without a caption.
    Raises InputError for a folder that is not complete, a damaged shard, and an empty split.
    """

    def __init__(
        self, root: str | Path, size: int, split: SplitOrAll = "train", shares: Shares | None = None,
        *, captioned: bool = False,
    ) -> None:  # fmt: skip
        shares = shares or Shares()
        options = ImageOptions(validation=shares.validation, test=shares.test)
        super().__init__(f"token shards {str(root)!r}", size, split, options)
        self.skipped = []
        self.manifest, tokens = _fetched(str(root)) if is_remote(str(root)) else read_token_folder(Path(root))
        if captioned:
            tokens = tokens.subset([place for place, caption in enumerate(tokens.captions) if caption])
        numbers = np.array([split_number(key) for key in tokens.keys], dtype=np.uint64)
        chosen = self._chosen(len(tokens), lambda split: split_mask(numbers, split, shares.validation, shares.test))
        self.tokens: TokenSet = tokens.subset(chosen.tolist())

    def __len__(self) -> int:
        return len(self.tokens)

    def stamp(self) -> str:
        """Digest of the manifest."""
        return sha256(repr(self.manifest).encode()).hexdigest()

    def check_tokenizer(self, digest: str, num_tokens: int, codebook_size: int) -> None:
        """InputError unless the tokens are of the tokenizer with this `tokenizer_digest`, C and N."""
        if self.manifest.tokenizer_digest != digest:
            raise InputError(
                f"{self.name} are of another tokenizer (digest {self.manifest.tokenizer_digest}, it was loaded as "
                f"{self.manifest.tokenizer!r}) than the recipe's (digest {digest}); set tokenizer=, or tokenize again"
            )

        said = self.manifest.num_tokens, self.manifest.codebook_size
        if said != (num_tokens, codebook_size):
            raise InputError(
                f"{self.name}: the manifest says {said[0]} tokens of {said[1]} codes, its tokenizer has {num_tokens} "
                f"of {codebook_size}; tokenize again"
            )

    def _read(self, index: int) -> tuple[Image.Image, str, str]:
        raise InputError(f"{self.name} hold no pictures: they are for training generators, recipes with task: car")


def _fetched(root: str) -> tuple[TokenManifest, TokenSet]:
    """All tokens behind an address; nothing of them stays on the disk."""
    address = remote_path(root.rstrip("/"))
    with TemporaryDirectory(prefix="channelvq-tokens-") as temporary:
        folder = Path(temporary)
        try:
            fetch(address / MANIFEST, folder / MANIFEST)
            for shard in read_manifest(folder).shards:
                for suffix in (IDS, LINES):
                    fetch(address / f"{shard.name}{suffix}", folder / f"{shard.name}{suffix}")
            return read_token_folder(folder)
        except InputError as error:
            raise InputError(str(error).replace(temporary, str(address))) from None

"""Prompts -> token ids in a slot of fixed length.

    prompt -> byte-level BPE, any UTF-8 -> (B, T) ids, padded on the left, and a mask that is True on the text

The slot has one length whatever the prompts, because CPU kernels give a row other bits in another shape: with a fixed
slot no prompt can change the picture of its neighbour.
"""

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from channelvq.errors import InputError
from channelvq.files import write_text_atomically

NUM_BYTES = 256
SHOWN_WORDS = 8
LEAST_VOCABULARY = 512  # in a smaller one, words that every caption has are in pieces too
FILE_NAME = "tokenizer.json"


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Text of fixed length T. ids: 0 where the mask is False. mask: True on text; all False for an empty prompt."""

    ids: Int64[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | Tensor) -> "TextBatch":
        return TextBatch(self.ids[rows], self.mask[rows])

    def to(self, device: torch.device) -> "TextBatch":
        """The same on another device."""
        return TextBatch(self.ids.to(device), self.mask.to(device))


def together(batches: Sequence[TextBatch]) -> TextBatch:
    """One batch of all their rows."""
    return TextBatch(torch.cat([batch.ids for batch in batches]), torch.cat([batch.mask for batch in batches]))


class UnknownWordsWarning(UserWarning):
    """A prompt has words that the generator has not learned."""


def train_bpe(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` >= 256 tokens; the same captions, in any order, give the same one.

    Every byte is a token, so any text can be encoded. There are no special tokens: the mask says what is padding.
    """
    if vocab_size < NUM_BYTES:
        raise InputError(f"train_bpe: vocab_size {vocab_size} must be at least {NUM_BYTES}, one token for each byte")
    tokenizer = Tokenizer(BPE())
    # A word is the same token at the start of a prompt and inside it.
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    tokenizer.decoder = ByteLevelDecoder()
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)  # type: ignore[call-arg]
    # Sorted: ties between equally frequent pairs must not depend on the order of the captions.
    tokenizer.train_from_iterator(sorted(captions), trainer)
    return tokenizer


class TextTokenizer:
    """A `tokenizers.Tokenizer`, whether trained here or a backbone's own, with the fixed slot and the errors."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of text tokens: ids are in 0..vocab_size-1."""
        return self.tokenizer.get_vocab_size()

    def encode(self, prompts: str | Iterable[str], length: int) -> TextBatch:
        """Prompts -> `TextBatch` of shape (B, length); a single one is a batch of one.

        An empty prompt has no tokens: it is the unconditional one. Raises InputError for no prompt, and for what is not
        text or a prompt of more than `length` tokens, by its number in the list.
        """
        if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | bytearray):
            raise InputError(f"prompts: expected a text or a list of at least one, got {prompts!r:.80}")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise InputError("prompts: expected a text or a list of at least one, got an empty list")
        for i, prompt in enumerate(prompts):
            _check_text(prompt, i)
        # Text that looks like a special token ("<|endoftext|>") is text.
        self.tokenizer.encode_special_tokens = True
        encoded = [e.ids for e in self.tokenizer.encode_batch(prompts, add_special_tokens=False)]
        # The space put before the first word is not a word.
        encoded = [ids if prompt else [] for prompt, ids in zip(prompts, encoded, strict=True)]
        for i, ids in enumerate(encoded):
            if len(ids) > length:
                raise InputError(
                    f"prompt {i} has {len(ids)} tokens, the model takes at most {length} (max_text_tokens); "
                    f"shorten it: {prompts[i][:40]!r}..."
                )
        rows = [[-1] * (length - len(ids)) + ids for ids in encoded]
        ids = torch.tensor(rows, dtype=torch.int64).view(len(rows), length)
        return TextBatch(ids.clamp(min=0), ids >= 0)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that are no token: captions that it was learned from do not have them, or seldom.

        [] for a language model's own tokenizer, which was learned from more than captions, and for a small vocabulary.
        """
        before = self.tokenizer.pre_tokenizer
        own = not self.tokenizer.get_added_tokens_decoder() and self.vocab_size >= LEAST_VOCABULARY
        if before is None or not own:
            return []
        words = before.pre_tokenize_str(prompt)
        return [prompt[a:b].strip() for word, (a, b) in words if self.tokenizer.token_to_id(word) is None]

    def warn_of_unknown(self, prompts: str | Iterable[str], stacklevel: int) -> None:
        """UnknownWordsWarning that names the words that are unknown; stacklevel: as for `warnings.warn`."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        unknown = list(dict.fromkeys(word for prompt in prompts for word in self.unknown_words(prompt)))
        if unknown:
            shown = ", ".join(map(repr, unknown[:SHOWN_WORDS])) + ", ..." * (len(unknown) > SHOWN_WORDS)
            warnings.warn(
                f"the captions that the generator learned from do not have, or seldom, {shown}: it cannot draw them",
                UnknownWordsWarning,
                stacklevel=stacklevel + 1,
            )

    def digest(self) -> str:
        """SHA-256 of its vocabulary and merges."""
        model = json.loads(self.tokenizer.to_str())["model"]  # the rest of the file grows with the library
        return sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        text = self.tokenizer.to_str(pretty=True)
        write_text_atomically(folder / FILE_NAME, text)

    @classmethod
    def load(cls, folder: Path) -> "TextTokenizer":
        """Read tokenizer.json of a folder."""
        path = folder / FILE_NAME
        if not path.is_file():
            raise InputError(f"{folder}: the folder holds no {FILE_NAME}; expected what CAR.save_pretrained writes")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises nothing more special
            raise InputError(f"{path}: the file is damaged ({error}); write or download it again") from None

    @classmethod
    def from_backbone(cls, name: str) -> "TextTokenizer":
        """The text tokenizer of a language model, by folder or hub id, such as "Qwen/Qwen3-4B"."""
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise InputError(f"backbone {name!r}: its text tokenizer cannot be loaded ({error})") from None
        if not getattr(loaded, "is_fast", False):
            raise InputError(f"backbone {name!r}: its text tokenizer has no tokenizer.json, which is needed")
        return cls(loaded.backend_tokenizer)


def _check_text(prompt: object, index: int) -> None:
    if not isinstance(prompt, str):
        raise InputError(f"prompt {index}: expected text, got {type(prompt).__name__} {prompt!r}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"prompt {index} is not valid Unicode text: {error}") from None

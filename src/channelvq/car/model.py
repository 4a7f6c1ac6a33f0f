"""CAR: a decoder-only language model that writes an image channel by channel.

    prompt --text tokenizer--> [pad .. pad  t_1 .. t_n] --text embedding--+
                               (slot of T tokens)                         |
    marker (begin of image, learned) -------------------------------------+--> backbone --> head --> p(x_1), .., p(x_C)
                                                                          |    (causal)     (over N codes, float32)
    x_1 .. x_(C-1) --codeword e_x (D)--> projector: Linear GELU Linear ---+

    Training: cross-entropy at the C image positions. Sampling (sampling.py, above this module): x_k ~ p(x_k | x_<k,
    prompt), then the tokenizer decodes x_1..x_k for any k.

B images, T text slot, C image tokens, N codes, D numbers in a codeword, E embedding, H hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.car.backbone import build_backbone, run_backbone, settings_of
from channelvq.car.config import CARConfig
from channelvq.car.files import ELSEWHERE, TOKENIZERS, read_tokenizers, write_generator
from channelvq.car.generation import Generation
from channelvq.car.packing import run_packed
from channelvq.car.settings import SamplingSettings
from channelvq.car.text import TextTokenizer
from channelvq.devices import resolve_device, resolve_dtype
from channelvq.errors import InputError
from channelvq.nn.kept import Kept
from channelvq.nn.modes import without_autocast
from channelvq.pretrained import CARD, find_folder, load_module, own_state, undrawn
from channelvq.tokenizer import CVQTokenizer


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model said of a sequence. nats: -log p of each true token. counted: where that enters the loss."""

    logits: Float[Tensor, "B n V"]
    nats: Float[Tensor, "B n"]
    counted: Bool[Tensor, "B n"]

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Mean nats per counted token."""
        return self.nats.masked_fill(~self.counted, 0.0).sum() / self.counted.sum().clamp(min=1)


class CAR(nn.Module, PyTorchModelHubMixin, library_name="channelvq", model_card_template=CARD):
    """Channel-wise autoregressive text-to-image model (arXiv 2605.26089), with its image and its text tokenizer.

    tokenizer: the image tokenizer; it is frozen. generator: decides the fresh weights (default: seed 0). fresh: False
    leaves the weights undrawn, for a file to fill.
    """

    codebook: Tensor
    codeword_mean: Tensor
    codeword_scale: Tensor

    def __init__(
        self,
        config: CARConfig,
        tokenizer: CVQTokenizer,
        text: TextTokenizer,
        *,
        generator: torch.Generator | None = None,
        fresh: bool = True,
    ) -> None:
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.text = text
        self.tokenizer = tokenizer.requires_grad_(False)
        self.backbone = build_backbone(config.backbone, text.vocab_size, generator if fresh else None)
        # The name's settings instead of the name: what is saved loads without the name's files.
        self.config = replace(config, backbone=settings_of(self.backbone.config))
        width = self.text_embedding.embedding_dim
        hidden = self.backbone.config.get_text_config(decoder=True).hidden_size
        self._add_codebook()
        with undrawn():  # drawn below, by `generator`
            self.projector = nn.Sequential(nn.Linear(self.codebook.shape[1], width), nn.GELU(), nn.Linear(width, width))
            self.head = nn.Linear(hidden, self.codebook_size if config.head == "linear" else width, bias=False)
        self.marker = nn.Parameter(torch.empty(width))
        channels = torch.empty(self.num_tokens, width) if config.channel_embedding else None
        self.channel_embedding = None if channels is None else nn.Parameter(channels)
        self._table: Kept[Tensor] = Kept()
        self.compiled_step: Kept[Callable[..., Tensor]] = Kept()  # of compiled.py, here so that it goes with the model
        self._check_length()
        if fresh:
            self._initialise(generator)

    def _add_codebook(self) -> None:
        codes = self.tokenizer.quantizer.codes().detach().float().clone()
        self.register_buffer("codebook", codes)
        self.register_buffer("codeword_mean", codes.mean(0))
        # Codewords may be tiny or large; the projector sees numbers about 1 in either case.
        self.register_buffer("codeword_scale", (codes - codes.mean(0)).square().mean().sqrt().clamp(min=1e-12))

    def _check_length(self) -> None:
        if self.num_tokens > self.tokenizer.num_tokens:
            raise InputError(
                f"num_tokens {self.num_tokens}: the image tokenizer has {self.tokenizer.num_tokens} tokens an image"
            )
        longest = getattr(self.backbone.config, "max_position_embeddings", None)
        text, image = self.config.max_text_tokens, self.num_tokens
        if longest is not None and longest < text + image:
            raise InputError(
                f"backbone: it takes {longest} positions, {text} text and {image} image tokens need {text + image}; "
                "lower max_text_tokens or raise the backbone's max_position_embeddings"
            )

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Fresh weights of all that is not the backbone; image inputs begin at the scale of the text embeddings."""
        if self.marker.is_meta:
            return
        scale = float(self.text_embedding.weight.float().std())
        first, last = cast(nn.Linear, self.projector[0]), cast(nn.Linear, self.projector[2])
        for layer in (first, last, self.head):
            layer.weight.normal_(0.0, layer.in_features**-0.5, generator=generator)
        for layer in (first, last):
            layer.bias.zero_()
        last.weight.mul_(scale / self._project(torch.arange(self.codebook_size)[:1024]).std().clamp(min=1e-6))
        for parameter in (self.marker, self.channel_embedding):
            if parameter is not None:
                parameter.normal_(0.0, scale, generator=generator)
        if self.config.head_start == "codebook":
            size = self.codebook.shape[1], self.head.in_features
            directions = torch.empty(size).normal_(0.0, (size[0] * size[1]) ** -0.5, generator=generator)
            self.head.weight.copy_(self._scaled_codewords(self._all_codes()) @ directions)
        elif self.config.head == "linear":
            # Small: the first predictions are near uniform, a loss of log N.
            self.head.weight.mul_(0.1)

    # Properties

    @property
    def num_tokens(self) -> int:
        """C, tokens of an image; fewer than the image tokenizer has where the config says so."""
        return self.config.num_tokens or self.tokenizer.num_tokens

    @property
    def codebook_size(self) -> int:
        """N, number of codes."""
        return self.tokenizer.codebook_size

    @property
    def max_text_tokens(self) -> int:
        """T, tokens of a prompt at most."""
        return self.config.max_text_tokens

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.marker.device

    @property
    def text_embedding(self) -> nn.Embedding:
        """The backbone's table of text embeddings."""
        return cast(nn.Embedding, self.backbone.get_input_embeddings())

    def new_parameters(self) -> Iterator[nn.Parameter]:
        """What the backbone did not have: projector, marker, head and, where there is one, the channel embedding."""
        yield from (*self.projector.parameters(), self.marker, *self.head.parameters())
        if self.channel_embedding is not None:
            yield self.channel_embedding

    # Tensors

    def forward(
        self,
        text_ids: Int64[Tensor, "B T"],
        text_mask: Bool[Tensor, "B T"],
        ids: Int64[Tensor, "B k"] | None = None,
        rows: Int64[Tensor, "R m"] | None = None,
    ) -> Prediction:
        """Teacher-forced prediction of image tokens 1..k, with logits (B, k, N).

        Without ids the backbone is a language model of the text: logits (B, T-1, vocabulary) for the 2nd to last text
        token, by its own text embeddings as the head. T may be any length here; text is padded on the left.
        rows: of `packed_rows`, in which the backbone then works on texts and ids; the prediction is the same.
        """
        text = self.text_embedding(text_ids)
        if ids is None:
            hidden = run_backbone(self.backbone, text, text_mask)[:, :-1]
            logits = F.linear(hidden, self.text_embedding.weight)
            return _predict(logits, text_ids[:, 1:], text_mask[:, :-1] & text_mask[:, 1:])
        inputs = torch.cat([text, self.image_inputs(ids[:, :-1]).to(text.dtype)], dim=1)
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        mask = torch.cat([text_mask, everywhere], dim=1)
        if rows is None:
            hidden = run_backbone(self.backbone, inputs, mask)
        else:
            hidden = run_packed(self.backbone, inputs, mask, rows)
        return _predict(self.logits(hidden[:, text.shape[1] :]), ids, everywhere)

    def image_inputs(
        self, ids: Int64[Tensor, "B k"], start: int = 0, table: Float[Tensor, "N E"] | None = None
    ) -> Float[Tensor, "B n E"]:
        """Embeddings of the image inputs number start..k: number 0 is the marker, number j is token x_j.

        table: the projected codebook, where it is at hand, instead of the projector.
        """
        tokens = ids[:, max(0, start - 1) :]
        inputs = self._project(tokens) if table is None else F.embedding(tokens, table)
        if start == 0:
            inputs = torch.cat([self.marker.expand(len(ids), 1, -1), inputs], dim=1)
        if self.channel_embedding is not None:
            inputs = inputs + self.channel_embedding[start : start + inputs.shape[1]]
        return inputs

    def next_inputs(
        self, ids: Int64[Tensor, " R"], numbers: Int64[Tensor, " R"], table: Float[Tensor, "N E"]
    ) -> Float[Tensor, "R 1 E"]:
        """As `image_inputs`, of one token a row, whose number among the image inputs is another one in each row."""
        inputs = F.embedding(ids, table)[:, None]
        if self.channel_embedding is not None:
            inputs = inputs + self.channel_embedding[numbers][:, None]
        return inputs.to(self.text_embedding.weight.dtype)

    def logits(
        self, hidden: Float[Tensor, "B n H"], table: Float[Tensor, "N E"] | None = None
    ) -> Float[Tensor, "B n N"]:
        """Scores of the N codes, in float32 at least; table: see `image_inputs`."""
        scores = self.head(hidden)
        if self.config.head == "codebook":
            scores = F.linear(scores, self._project(self._all_codes()) if table is None else table)
        return _at_least_float32(scores)

    def _all_codes(self) -> Int64[Tensor, " N"]:
        return torch.arange(self.codebook_size, device=self.device)

    def _project(self, ids: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape E"]:
        return self.projector(self._scaled_codewords(ids))

    def _scaled_codewords(self, ids: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        return (F.embedding(ids, self.codebook) - self.codeword_mean) / self.codeword_scale

    @torch.no_grad()
    def image_table(self) -> Float[Tensor, "N E"]:
        """The projected codebook: the input embedding of every code. Computed again only after the weights change."""
        return self._table.get([*self.projector.parameters(), self.codebook], self._project_all)

    def _project_all(self) -> Float[Tensor, "N E"]:
        with without_autocast(self.codebook):  # it is kept, for calls in every precision
            return torch.cat([self._project(part) for part in self._all_codes().split(4096)])  # little memory at a time

    # Images: thin, since the sampler stands above the model; it is imported where it is used

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seed: int = SamplingSettings.seed,
        num_tokens: int | None = None,
        guidance_scale: float = SamplingSettings.guidance_scale,
        temperature: float = SamplingSettings.temperature,
        top_k: int = SamplingSettings.top_k,
        top_p: float = SamplingSettings.top_p,
        exact: bool = True,
        compiled: bool = False,
        prefix_ids: Int64[Tensor, "B p"] | None = None,
        negative_prompt: str | Sequence[str] = "",
        num_images_per_prompt: int = 1,
        size: int | tuple[int, int] | None = None,
        callback: Callable[[Generation], object] | None = None,
    ) -> Generation:
        """Draw images for each prompt; image i uses seed + i and does not depend on the other images.

        prompts: "" is the unconditional prompt.
        num_tokens: length of the ids, 1..C (default C); any length decodes.
        guidance_scale, temperature, top_k, top_p: see `SamplingSettings`.
        exact: ids do not depend on neighbours, at the price of filling up to 8 rows; False is faster for a few prompts.
        compiled: with exact=False, compile the step of a token first: 10 to 60 seconds, once in a process for a number
            of prompts and, on the CPU, for weights, of which each compiled step keeps a copy.
        prefix_ids: ids to continue from, a row a prompt, such as the first ones of a picture that was tokenized; the
            result begins with them and equals that of an uninterrupted run.
        negative_prompt: what guidance leads away from; one for all prompts, or one for each.
        num_images_per_prompt: those of the first prompt come first.
        size: of the images, (height, width) or a side, see `CVQTokenizer.detokenize`.
        callback: called after each token with what there is.
        Raises InputError for anything out of range; warns (UserWarning) where guidance cannot do what is asked.
        """
        from channelvq.car.sampling import Sampler

        settings = SamplingSettings(guidance_scale, temperature, top_k, top_p, seed)
        sampler = Sampler(self, settings, exact=exact, compiled=compiled)
        return sampler.generate(
            prompts, callback=callback, num_tokens=num_tokens, prefix_ids=prefix_ids, negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt, size=size,
        )  # fmt: skip

    def stream(
        self,
        prompts: str | Sequence[str],
        every: int = 8,
        *,
        seed: int = SamplingSettings.seed,
        num_tokens: int | None = None,
        guidance_scale: float = SamplingSettings.guidance_scale,
        temperature: float = SamplingSettings.temperature,
        top_k: int = SamplingSettings.top_k,
        top_p: float = SamplingSettings.top_p,
        exact: bool = True,
        prefix_ids: Int64[Tensor, "B p"] | None = None,
        negative_prompt: str | Sequence[str] = "",
        num_images_per_prompt: int = 1,
        size: int | tuple[int, int] | None = None,
    ) -> Iterator[Generation]:
        """As `generate`, but yields what there is after every `every` tokens and at the end."""
        from channelvq.car.sampling import Sampler

        settings = SamplingSettings(guidance_scale, temperature, top_k, top_p, seed)
        return Sampler(self, settings, exact=exact).stream(
            prompts, every, num_tokens=num_tokens, prefix_ids=prefix_ids, negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt, size=size,
        )  # fmt: skip

    def score(
        self, prompts: str | Sequence[str], ids: Int64[Tensor, "B k"], *, exact: bool = True
    ) -> Float[Tensor, "B k"]:
        """Log-probability, in nats, of each given token after its prompt and the tokens before it, without guidance.

        ids: the first k tokens of each image, for any k in 1..C.
        """
        from channelvq.car.sampling import Sampler

        return Sampler(self, exact=exact).score(prompts, ids)

    # Files

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = own_state(self, ELSEWHERE)
        write_generator(save_directory, self.config, self.tokenizer, self.text, weights)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> "CAR":
        """Load a generator with its tokenizers: "bundled", "bundled-fashion", a folder, or the id of a hub repository.

        device: where their weights go, see `resolve_device`. dtype: of all weights, those of the image tokenizer too,
        such as "bfloat16"; None leaves them as they were saved. options: subfolder, and those of
        `huggingface_hub.snapshot_download` (revision, cache_dir, token, ...), for a hub repository. Raises InputError
        if a file is missing or if weights, image tokenizer and text tokenizer do not fit together.
        """
        place, precision = resolve_device(device), resolve_dtype(dtype)
        folder = find_folder("generator", pretrained_model_name_or_path, "car", more_files=TOKENIZERS, **options)
        tokenizer, text = read_tokenizers(folder)
        # A generator that was saved in half precision is one, its image tokenizer too.
        model = load_module(
            lambda config: cls(config, tokenizer, text, fresh=False), CARConfig, folder, ELSEWHERE, "codebook"
        )
        return model.to(place, precision)


def _predict(logits: Tensor, targets: Tensor, counted: Tensor) -> Prediction:
    logits = _at_least_float32(logits)
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    return Prediction(logits, nats, counted)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

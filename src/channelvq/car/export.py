"""CAR as a stock causal language model that transformers, vLLM or SGLang serve without this library.

    embedding rows   0 .. V-1 text   V marker   V+1 padding   V+2 .. V+1+N image codes: the projected codebook, a table
    head rows        0 .. V-1 text   V unused   V+1 unused    V+2 .. V+1+N image codes: CAR's head

After the marker come C image tokens; the generation config forbids everything else, and the text tokenizer appends the
marker to a prompt. Image id i of the tokenizer is token V + 2 + i, and its text is <|image_i|>: servers that answer in
text say with it which code they chose. Padding has a token of its own: where no attention mask is given, transformers
hides what looks like padding.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from channelvq.car.model import CAR
from channelvq.config import from_dict
from channelvq.errors import InputError
from channelvq.files import filled_folder
from channelvq.nn.modes import evaluating
from channelvq.pretrained import read_settings, write_settings

MARKER, PADDING = "<|image|>", "<|pad|>"
IMAGE_TOKEN = re.compile(r"<\|image_(0|[1-9][0-9]{0,8})\|>")  # their texts, see `image_token`
LAYOUT_FILE = "channelvq.json"
IMAGE_TOKENIZER = "image_tokenizer"


@dataclass(frozen=True)
class ExportLayout:
    """Where the image tokens are among the tokens of an exported model: LAYOUT_FILE in its folder."""

    marker_id: int
    first_image_id: int
    codebook_size: int
    num_tokens: int

    def image_ids(self, tokens: list[int]) -> list[int]:
        """Tokens that a served model wrote -> image ids in 0..N-1.

        Raises InputError for a token that is not an image token, and for more than `num_tokens` of them.
        """
        ids = [token - self.first_image_id for token in tokens]
        wrong = next((i for i, code in enumerate(ids) if not 0 <= code < self.codebook_size), None)
        if wrong is not None:
            raise InputError(
                f"token {tokens[wrong]} at place {wrong} is no image token "
                f"({self.first_image_id}..{self.last_image_id}); "
                "serve with allowed_token_ids or the exported generation config"
            )
        if not 1 <= len(ids) <= self.num_tokens:
            raise InputError(f"{len(ids)} image tokens: expected 1 to {self.num_tokens}")
        return ids

    @property
    def last_image_id(self) -> int:
        """The token of the last code."""
        return self.first_image_id + self.codebook_size - 1

    @classmethod
    def load(cls, folder: str | Path) -> "ExportLayout":
        """Of a folder that `export_car` wrote."""
        path = Path(folder) / LAYOUT_FILE
        if not path.is_file():
            raise InputError(f"{folder}: the folder holds no {LAYOUT_FILE}; expected what `cvq export` writes")
        return from_dict(cls, read_settings(path), where=str(path))


def image_token(code: int) -> str:
    """The text of an image token."""
    return f"<|image_{code}|>"


def export_car(model: CAR, folder: str | Path, dtype: torch.dtype = torch.float32) -> ExportLayout:
    """Write a stock causal language model, its text tokenizer and the image tokenizer to a folder.

    folder: gets config.json, model.safetensors, generation_config.json, tokenizer.json, LAYOUT_FILE and the image
    tokenizer under IMAGE_TOKENIZER. dtype: of the stored weights. Raises InputError for a model that no stock one can
    stand for: one with a channel embedding, whose embedding is not as wide as its hidden states, or whose type has a
    head of its own (Gemma scales embeddings and caps logits, Granite and Cohere scale logits).
    """
    folder = Path(folder)
    stock, layout = stock_model(model)
    cast(nn.Module, stock).to(dtype)
    before = _weight_files(folder)
    with filled_folder(folder) as new:
        stock.save_pretrained(new)
        write_tokenizers(model, layout, new)
        left = before - _weight_files(new)
    for name in left:  # of an earlier export in fewer or more parts: transformers could load them instead
        (folder / name).unlink()
    return layout


def write_tokenizers(model: CAR, layout: ExportLayout, folder: Path) -> None:
    """What an export holds beside the language model: both tokenizers, and where the image tokens are."""
    text_tokenizer(model, layout).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder / IMAGE_TOKENIZER)
    write_settings(folder / LAYOUT_FILE, asdict(layout))


def _weight_files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("model*.safetensors*")}


def stock_model(model: CAR) -> tuple[PreTrainedModel, ExportLayout]:
    """The causal language model in the precision of `model`, and where its image tokens are; see `export_car`."""
    text = model.text.vocab_size
    layout = ExportLayout(text, text + 2, model.codebook_size, model.num_tokens)
    _check(model)
    config = type(model.backbone.config)(
        **model.config.backbone  # type: ignore[arg-type]  # settings: CAR's own config holds them resolved
        | {"vocab_size": layout.first_image_id + layout.codebook_size, "tie_word_embeddings": False}
    )
    stock = cast(PreTrainedModel, AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    cast(nn.Module, stock).to(model.marker.dtype)
    with torch.no_grad(), evaluating(model):
        rows = model.text_embedding.weight[:text]
        unused = torch.zeros_like(rows[:1])
        embedding = torch.cat([rows, model.marker[None], unused, model.image_table()])
        head = torch.cat([rows, unused, unused, _head_rows(model)])
        state = {n: t for n, t in model.backbone.state_dict().items() if t is not model.text_embedding.weight}
        base = cast(PreTrainedModel, stock.base_model)
        base.load_state_dict(state | {_name_of(base): embedding})
        cast(nn.Linear, stock.get_output_embeddings()).weight.copy_(head)
    stock.generation_config = _generation_config(layout)
    _check_same(model, stock.eval(), layout)
    return stock, layout


def _check(model: CAR) -> None:
    if model.channel_embedding is not None:
        raise InputError(
            "export: the model has a channel embedding, which no stock language model has; train with "
            "model.channel_embedding=false (the default)"
        )
    width, hidden = model.text_embedding.embedding_dim, model.backbone.config.hidden_size
    if width != hidden:
        raise InputError(f"export: embeddings of {width} numbers do not fit a head on {hidden}; use a Qwen3 backbone")


@torch.no_grad()
def _check_same(model: CAR, stock: PreTrainedModel, layout: ExportLayout) -> None:
    """InputError where the stock model gives other logits for a few tokens."""
    text = torch.arange(3, device=model.device)[None] % model.text.vocab_size
    ids = torch.arange(min(4, layout.num_tokens), device=model.device)[None] % layout.codebook_size
    marker = torch.full_like(ids[:, :1], layout.marker_id)
    with evaluating(model):
        ours = model(text, torch.ones_like(text, dtype=torch.bool), ids).logits
        inputs = torch.cat([text, marker, ids[:, :-1] + layout.first_image_id], dim=1)
        theirs = stock(inputs.to(stock.device)).logits[:, text.shape[1] :, layout.first_image_id :].to(ours.device)
    # Half of the digits: the two round in another order.
    allowed = torch.finfo(model.marker.dtype).eps ** 0.5 * float(ours.abs().max())
    if not (difference := float((theirs - ours).abs().max())) <= allowed:
        raise InputError(
            f"export: a stock {stock.config.model_type} gives other logits than CAR on it, by up to {difference:.2g}: "
            "its own language model scales embeddings or logits; use a backbone such as qwen3 or llama"
        )


def _name_of(base: PreTrainedModel) -> str:
    """Of the embedding's weight in the state of a model."""
    weight = cast(nn.Embedding, base.get_input_embeddings()).weight
    return next(name for name, parameter in base.named_parameters() if parameter is weight)


def _head_rows(model: CAR) -> Float[Tensor, "N H"]:
    """One row a code; a head that scores projected codewords is a product of two tables."""
    weight = model.head.weight
    return model.image_table() @ weight if model.config.head == "codebook" else weight


def _generation_config(layout: ExportLayout) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=layout.num_tokens,
        min_new_tokens=layout.num_tokens,
        suppress_tokens=list(range(layout.first_image_id)),  # after the marker there is nothing but image tokens
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=layout.marker_id + 1,
    )


def text_tokenizer(model: CAR, layout: ExportLayout) -> PreTrainedTokenizerFast:
    """The prompt's tokens, and the marker after them; text that looks like the marker is text, as it is for CAR."""
    settings: dict[str, Any] = json.loads(model.text.tokenizer.to_str())
    if any(model.text.tokenizer.token_to_id(token) is not None for token in (MARKER, PADDING, image_token(0))):
        raise InputError(f"export: the text tokenizer already has a token {MARKER}, {PADDING} or {image_token(0)}")
    _name_image_tokens(settings, layout)
    tokenizer = Tokenizer.from_str(json.dumps(settings | {"post_processor": None}))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (MARKER, PADDING)])
    if [tokenizer.token_to_id(token) for token in (MARKER, PADDING)] != [layout.marker_id, layout.marker_id + 1]:
        raise InputError(f"export: ids of the text tokenizer are not 0..{layout.marker_id - 1}")
    if max(tokenizer.encode(image_token(0)).ids, default=0) >= layout.marker_id:
        raise InputError(f"export: the text tokenizer would take the text {image_token(0)} for an image token")
    tokenizer.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single=f"$A {MARKER}", pair=None, special_tokens=[(MARKER, layout.marker_id)]
    )
    length = model.config.max_text_tokens + 1 + layout.num_tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PADDING, padding_side="left", model_max_length=length,
        split_special_tokens=True,
    )  # fmt: skip


def _name_image_tokens(settings: dict[str, Any], layout: ExportLayout) -> None:
    """Give image tokens their texts in the vocabulary of a BPE: no merge leads to them, so no prompt has them."""
    if settings["model"]["type"] != "BPE":
        return
    named = {token["content"]: token["id"] for token in settings.get("added_tokens", ())}
    named |= {MARKER: layout.marker_id, PADDING: layout.marker_id + 1}
    named |= {image_token(code): layout.first_image_id + code for code in range(layout.codebook_size)}
    settings["model"]["vocab"] |= named  # without holes: the library complains of them

"""An exported generator is a stock language model that writes our ids."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM
from typer.testing import CliRunner

from channelvq.car.export import IMAGE_TOKEN, IMAGE_TOKENIZER, ExportLayout, export_car
from channelvq.car.model import CAR
from channelvq.cli import app
from channelvq.errors import InputError
from channelvq.tokenizer import CVQTokenizer

PROMPTS = ["a photo of two bananas", "a green dog", "three small black cats"]
BACKBONE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LLAMA = BACKBONE | {"model_type": "llama"}


def served(folder: Path, guidance: float | None = None) -> torch.Tensor:
    """What a user of transformers gets, from the folder alone: prompts of different lengths in one padded batch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    text = AutoTokenizer.from_pretrained(folder)(PROMPTS, return_tensors="pt", padding=True)
    layout = ExportLayout.load(folder)
    more = {}
    if guidance is not None:
        empty = torch.full((len(PROMPTS), 1), layout.marker_id)
        more = {"guidance_scale": guidance, "negative_prompt_ids": empty,
                "negative_prompt_attention_mask": torch.ones_like(empty)}  # fmt: skip
    written = model.generate(**text, do_sample=False, **more)[:, text.input_ids.shape[1] :]
    return torch.tensor([layout.image_ids(row) for row in written.tolist()])


@pytest.mark.parametrize("guidance", [None, 3.0])
@pytest.mark.parametrize("settings", [{}, {"head": "codebook"}, {"backbone": LLAMA}], ids=["linear", "tied", "llama"])
def test_generate_of_transformers_writes_our_ids(
    new_car: Callable[..., CAR], settings: dict[str, object], guidance: float | None, tmp_path: Path
) -> None:
    car = new_car(**settings).double()
    export_car(car, tmp_path, torch.float64)
    ours = car.generate(PROMPTS, temperature=0, guidance_scale=guidance or 1.0).ids
    assert len(ours.unique()) > 3
    assert torch.equal(served(tmp_path, guidance), ours)


@pytest.mark.parametrize("kind", [{"model_type": "granite", "logits_scaling": 8.0}, {"model_type": "gemma2"}])
def test_a_type_with_a_head_of_its_own_is_refused(
    new_car: Callable[..., CAR], kind: dict[str, object], tmp_path: Path
) -> None:
    """Granite divides logits, Gemma 2 scales embeddings and caps logits: the stock model would draw something else."""
    car = new_car(backbone=BACKBONE | {"num_key_value_heads": 2, "pad_token_id": 0} | kind)
    with pytest.raises(InputError, match="gives other logits than CAR"):
        export_car(car, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_logits_are_ours(car: CAR, tmp_path: Path) -> None:
    layout = export_car(car, tmp_path)
    model = Qwen3ForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(8)[None] * 3
    text = car.text.encode(PROMPTS[:1], 24)
    used = text.ids[text.mask][None]
    inputs = torch.cat([used, torch.tensor([[layout.marker_id]]), ids[:, :-1] + layout.first_image_id], dim=1)
    with torch.no_grad():
        theirs = model(inputs).logits[:, used.shape[1] :, layout.first_image_id :]
        ours = car(text.ids, text.mask, ids).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_sampling_writes_image_tokens_only_and_they_decode(car: CAR, tmp_path: Path) -> None:
    layout = export_car(car, tmp_path, torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    prompt = torch.tensor([[layout.marker_id]] * 4)
    torch.manual_seed(0)
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), temperature=50.0)[:, 1:]
    ids = torch.tensor([layout.image_ids(row) for row in written.tolist()])
    assert ids.shape == (4, car.num_tokens)
    tokenizer = CVQTokenizer.from_pretrained(tmp_path / IMAGE_TOKENIZER)
    assert torch.equal(tokenizer.detokenize(ids, "tensor"), car.tokenizer.detokenize(ids, "tensor"))


def test_marker_follows_every_prompt_and_text_like_it_is_refused_nowhere(car: CAR, tmp_path: Path) -> None:
    layout = export_car(car, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for prompt in PROMPTS:
        assert (
            tokenizer(prompt).input_ids
            == [*car.text.encode([prompt], 24).ids[0].tolist(), layout.marker_id][-len(tokenizer(prompt).input_ids) :]
        )


def test_answers_without_an_attention_mask_are_ours(new_car: Callable[..., CAR], tmp_path: Path) -> None:
    """What looks like padding is hidden then: the marker must not, and padding must."""
    car = new_car().double()
    layout = export_car(car, tmp_path, torch.float64)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    text = AutoTokenizer.from_pretrained(tmp_path)(PROMPTS, return_tensors="pt", padding=True)
    ours = car.generate(PROMPTS, temperature=0, guidance_scale=1.0).ids
    written = model.generate(text.input_ids, do_sample=False)[:, text.input_ids.shape[1] :]
    assert [layout.image_ids(row) for row in written.tolist()] == ours.tolist()
    alone = model.generate(text.input_ids[:1, -int(text.attention_mask[0].sum()) :], do_sample=False)
    assert layout.image_ids(alone[0, -car.num_tokens :].tolist()) == ours[0].tolist()


@pytest.mark.parametrize("prompt", ["a <|image|> dog", "<|image|>", "<|pad|> a <|pad|>", "a dog <|image|><|image|>"])
def test_a_prompt_with_the_markers_text_is_text(car: CAR, prompt: str, tmp_path: Path) -> None:
    layout = export_car(car, tmp_path)
    encoded = car.text.encode([prompt], 24)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    expected = [*encoded.ids[encoded.mask].tolist(), layout.marker_id]
    assert tokenizer(prompt).input_ids == expected
    assert tokenizer([prompt, "a"], padding=True).input_ids[0] == expected


def test_image_tokens_have_texts_that_no_prompt_turns_into_them(car: CAR, tmp_path: Path) -> None:
    """A server that answers in text says which codes it chose."""
    layout = export_car(car, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = [layout.first_image_id, layout.first_image_id + 17, layout.last_image_id]
    text = "<|image_0|><|image_17|><|image_31|>"
    for skip in (True, False):
        assert tokenizer.decode(tokens, skip_special_tokens=skip) == text
    assert [int(code) for code in IMAGE_TOKEN.findall(text)] == layout.image_ids(tokens)
    assert len(tokenizer) == layout.last_image_id + 1
    for prompt in (text, " <|image_0|>", "a<|image_31|>dog"):
        encoded = car.text.encode([prompt], 64)
        assert tokenizer(prompt).input_ids == [*encoded.ids[encoded.mask].tolist(), layout.marker_id]
        assert max(tokenizer(prompt).input_ids) == layout.marker_id


def test_tokens_that_are_no_image_are_named() -> None:
    layout = ExportLayout(marker_id=300, first_image_id=301, codebook_size=32, num_tokens=8)
    assert layout.image_ids([301, 332]) == [0, 31]
    for token in (300, 333):
        with pytest.raises(InputError, match=rf"token {token} at place 1 .*301\.\.332"):
            layout.image_ids([301, token])
    with pytest.raises(InputError, match="9 image tokens"):
        layout.image_ids([301] * 9)


def test_what_no_stock_model_can_stand_for_is_refused(new_car: Callable[..., CAR], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="channel embedding"):
        export_car(new_car(channel_embedding=True), tmp_path)
    with pytest.raises(InputError, match=r"channelvq\.json"):
        ExportLayout.load(tmp_path)


def test_command_writes_the_folder(car: CAR, tmp_path: Path) -> None:
    car.save_pretrained(tmp_path / "car")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "car"), str(tmp_path / "out"), "--dtype", "bfloat16"])
    assert result.exit_code == 0, result.output
    assert ExportLayout.load(tmp_path / "out").num_tokens == car.num_tokens
    again = CliRunner().invoke(app, ["export", str(tmp_path / "car"), str(tmp_path / "car" / "config.json")])
    assert isinstance(again.exception, InputError)

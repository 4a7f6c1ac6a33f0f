"""The model: what enters the loss, what learns, which backbones fit, and its files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.car.oracle import naive_ids
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from channelvq.car import backbone as backbone_module
from channelvq.car.config import CARConfig
from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.car.text import TextTokenizer, train_bpe
from channelvq.errors import InputError
from channelvq.tokenizer import CVQTokenizer

PROMPTS = ["a green dog", "three small black cats", ""]
LLAMA = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64}  # fmt: skip
BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}


def some_ids(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 32, (rows, 8), generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_the_cross_entropy_of_the_image_tokens(car: CAR) -> None:
    text, ids = car.text.encode(PROMPTS, 24), some_ids(3)
    with torch.no_grad():
        out = car(text.ids, text.mask, ids)
    assert out.logits.shape == (3, 8, 32)
    expected = -out.logits.log_softmax(2).gather(2, ids[:, :, None])[:, :, 0]
    torch.testing.assert_close(out.nats, expected)
    torch.testing.assert_close(out.loss, expected.mean())


def test_a_token_is_predicted_from_those_before_it_only(car: CAR) -> None:
    text, ids = car.text.encode(PROMPTS, 24), some_ids(3)
    changed = ids.clone()
    changed[:, 4] = (ids[:, 4] + 1) % 32
    with torch.no_grad():
        before, after = car(text.ids, text.mask, ids).logits, car(text.ids, text.mask, changed).logits
    torch.testing.assert_close(after[:, :5], before[:, :5], atol=1e-5, rtol=1e-5)
    assert (after[:, 5] - before[:, 5]).abs().amax() > 1e-2


def test_what_stands_on_padding_does_not_matter(car: CAR) -> None:
    text, ids = car.text.encode(PROMPTS, 24), some_ids(3)
    noise = torch.where(text.mask, text.ids, 77)
    with torch.no_grad():
        torch.testing.assert_close(car(noise, text.mask, ids).logits, car(text.ids, text.mask, ids).logits)


def test_a_fresh_model_predicts_about_uniformly(new_car: Callable[..., CAR]) -> None:
    model = CAR(CARConfig(), *parts(new_car))
    text = model.text.encode(PROMPTS, 24)
    with torch.no_grad():
        loss = model(text.ids, text.mask, some_ids(3)).loss
    assert abs(float(loss) - torch.log(torch.tensor(32.0))) < 0.1
    # Image inputs have the scale of text inputs, however small the codewords are.
    assert 0.5 < float(model.image_table().std() / model.text_embedding.weight.detach().std()) < 2


def parts(new_car: Callable[..., CAR]) -> tuple[CVQTokenizer, TextTokenizer]:
    model = new_car()
    return model.tokenizer, model.text


def test_the_generator_decides_the_weights_and_the_global_one_is_left_alone(new_car: Callable[..., CAR]) -> None:
    tokenizer, text = parts(new_car)
    before = torch.get_rng_state()
    a, b, c = (
        CAR(CARConfig(), tokenizer, text, generator=torch.Generator().manual_seed(s)).state_dict() for s in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["backbone.layers.0.mlp.up_proj.weight"], c["backbone.layers.0.mlp.up_proj.weight"])
    assert not torch.equal(a["head.weight"], c["head.weight"])


@pytest.mark.parametrize("settings", [{}, {"head": "codebook"}, {"channel_embedding": True}])
def test_everything_but_the_tokenizer_gets_a_gradient(new_car: Callable[..., CAR], settings: dict[str, object]) -> None:
    model = new_car(**settings).train()
    text = model.text.encode(PROMPTS, 24)
    model(text.ids, text.mask, some_ids(3)).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("tokenizer."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_the_language_model_predicts_the_next_text_token(new_car: Callable[..., CAR]) -> None:
    model = new_car()
    text = model.text.encode(PROMPTS, 24)
    out = model(text.ids, text.mask)
    lengths = text.mask.sum(1)
    assert out.counted.sum(1).tolist() == (lengths - 1).clamp(min=0).tolist()
    # By hand, without padding.
    first = text.ids[0][text.mask[0]][None]
    alone = model(first, torch.ones_like(first, dtype=torch.bool))
    assert torch.allclose(alone.nats[0], out.nats[0][out.counted[0]], atol=1e-4)
    assert torch.allclose(alone.nats[0], F.cross_entropy(alone.logits[0], first[0, 1:], reduction="none"))
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    assert all(parameter.grad is None for parameter in model.new_parameters())


def test_prompts_matter_to_a_model_that_has_learned_them(new_car: Callable[..., CAR]) -> None:
    model = CAR(
        CARConfig(backbone={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}), *parts(new_car)
    )
    prompts, ids = ["a green dog", "a red car", "two bananas", "black cats"], some_ids(4, seed=3)
    text = model.text.encode(prompts, 24)
    optimizer = torch.optim.AdamW([*model.backbone.parameters(), *model.new_parameters()], lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(text.ids, text.mask, ids).loss.backward()
        optimizer.step()
    model.eval()
    right, wrong = -model.score(prompts, ids).mean(), -model.score(prompts[1:] + prompts[:1], ids).mean()
    assert right < 0.3
    assert wrong > right + 1
    assert torch.equal(model.generate(prompts, temperature=0.0, guidance_scale=1.0).ids, ids)


def test_the_image_table_follows_the_weights(new_car: Callable[..., CAR]) -> None:
    model = new_car()
    table = model.image_table()
    assert table.shape == (32, 32)
    assert model.image_table() is table
    torch.testing.assert_close(model.image_inputs(some_ids(2), start=1), F.embedding(some_ids(2), table))
    with torch.no_grad():
        model.projector[2].bias.add_(1.0)
    torch.testing.assert_close(model.image_table(), table + 1.0)


def test_a_head_may_begin_with_the_codewords(new_car: Callable[..., CAR]) -> None:
    car = new_car(1.0, head_start="codebook")
    codes = (car.codebook - car.codeword_mean) / car.codeword_scale
    assert codes.shape == (32, 16)
    rows = car.head.weight.detach()
    assert torch.linalg.matrix_rank(rows, rtol=1e-4) == 16
    fit = codes @ torch.linalg.lstsq(codes, rows).solution
    torch.testing.assert_close(fit, rows, atol=1e-5, rtol=0)
    hidden = torch.randn(2000, 32, generator=torch.Generator().manual_seed(2))
    assert float(car.logits(hidden[None]).detach().std()) == pytest.approx(1, abs=0.3)
    assert torch.linalg.matrix_rank(new_car(1.0).head.weight, rtol=1e-4) == 32
    with pytest.raises(ValueError, match="head_start 'codebook' is for head: linear"):
        new_car(1.0, head="codebook", head_start="codebook")


@pytest.mark.parametrize("backbone", [LLAMA, GPT2, BERT | {"is_decoder": True}])
@pytest.mark.parametrize("head", ["linear", "codebook"])
def test_any_decoder_is_a_backbone(new_car: Callable[..., CAR], backbone: dict[str, object], head: str) -> None:
    model = new_car(backbone=backbone, head=head, channel_embedding=True).double()
    cached = model.generate(PROMPTS, seed=1).ids
    assert torch.equal(cached, naive_ids(model, PROMPTS, SamplingSettings(seed=1)))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"hiden_size": 32}, r"a qwen3 has no setting\(s\) hiden_size"),
        ({"model_type": "nonsense"}, "no model_type 'nonsense'"),
        ({"model_type": [1]}, r"model_type is a name such as qwen3 or llama, got \[1\]"),
        ({"model_type": None}, "model_type is a name"),
        ({"num_attention_heads": 3}, r"settings of a qwen3 cannot be used: .*head_dim"),
        ({"num_key_value_heads": 3}, "settings of a qwen3 cannot be used"),
        ({"hidden_size": "abc"}, r"settings of a qwen3 cannot be used: .*hidden_size"),
        ({"hidden_size": 0}, "hidden_size 0|ZeroDivisionError"),
        ({"hidden_size": -8}, "hidden_size -8"),
        ({"num_hidden_layers": 0}, "at least 1, got num_hidden_layers 0"),
        ({"num_attention_heads": 0}, "num_attention_heads 0|ZeroDivisionError"),
        ({"hidden_act": "nonsense"}, "settings of a qwen3 cannot be used: KeyError"),
        ({"vocab_size": "many"}, "settings of a qwen3 cannot be used"),
        ({"layer_types": ["odd"]}, "settings of a qwen3 cannot be used"),
        ({"rms_norm_eps": float("nan")}, "gives numbers that are not finite"),
        (BERT, "with is_decoder=False the tokens of a bert see later ones; set is_decoder=True"),
        ({"model_type": "roberta"}, "set is_decoder=True"),
        ({"model_type": "xlnet"}, "with attn_type='bi' the tokens of a xlnet see later ones"),
        ({"model_type": "xlm"}, "with causal=False"),
        ({"model_type": "bart"}, "a bart is no decoder-only language model"),
        ({"model_type": "vit"}, "a vit is no decoder-only language model"),
        ({"vocab_size": 100}, r"it embeds 100 text tokens, the text tokenizer has \d+"),
        ({"max_position_embeddings": 31}, "takes 31 positions, 24 text and 8 image tokens need 32"),
        ("/nowhere/at/all", "no folder or hub repository that can be read"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_named(
    new_car: Callable[..., CAR], backbone: dict[str, object] | str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        new_car(backbone=backbone)


@pytest.mark.parametrize("backbone", [LLAMA, GPT2, BERT | {"is_decoder": True}])
def test_earlier_logits_do_not_change_with_later_tokens(
    new_car: Callable[..., CAR], backbone: dict[str, object]
) -> None:
    model = new_car(backbone=backbone).double()
    text, ids = model.text.encode(PROMPTS, 24), some_ids(3)
    changed = torch.cat([ids[:, :4], (ids[:, 4:] + 1) % 32], dim=1)
    with torch.no_grad():
        before, after = (model(text.ids, text.mask, each).logits for each in (ids, changed))
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-9)  # logits of a token are before it
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3


def test_what_is_not_causal_by_its_type_is_found_by_trying(
    new_car: Callable[..., CAR], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone_module, "_check_causal", lambda config: None)
    with pytest.raises(InputError, match="a bert with these settings lets tokens see later ones"):
        new_car(backbone=BERT)


def test_an_encoder_by_name_is_refused(new_car: Callable[..., CAR], tmp_path: Path) -> None:
    AutoModel.from_config(AutoConfig.for_model(**BERT)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="the tokens of a bert see later ones"):
        new_car(backbone=str(tmp_path))


def test_a_backbone_by_name_brings_its_weights(new_car: Callable[..., CAR], tmp_path: Path) -> None:
    source = new_car()
    source.backbone.save_pretrained(tmp_path)
    model = CAR(CARConfig(backbone=str(tmp_path)), source.tokenizer, source.text)
    assert torch.equal(model.text_embedding.weight, source.text_embedding.weight)
    # What is saved no longer needs the name's files.
    assert isinstance(model.config.backbone, dict)
    assert model.config.backbone["hidden_size"] == 32


def test_the_plan_of_a_large_model_needs_no_memory(new_car: Callable[..., CAR]) -> None:
    tokenizer, text = parts(new_car)
    large = {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
             "head_dim": 128, "intermediate_size": 9728, "vocab_size": 151936}  # fmt: skip
    with torch.device("meta"):
        model = CAR(CARConfig(backbone=large), tokenizer, text)
    assert 4.0e9 < sum(p.numel() for p in model.backbone.parameters()) < 4.1e9
    assert all(p.is_meta for p in model.new_parameters())


@pytest.mark.parametrize("settings", [{}, {"head": "codebook", "channel_embedding": True, "backbone": LLAMA}])
def test_saved_and_loaded_draws_the_same(
    new_car: Callable[..., CAR], tmp_path: Path, settings: dict[str, object]
) -> None:
    model = new_car(**settings)
    model.save_pretrained(tmp_path)
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer/config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pkl", ".pt"))]
    loaded = CAR.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    out, expected = loaded.generate(PROMPTS, seed=7), model.generate(PROMPTS, seed=7)
    assert torch.equal(out.ids, expected.ids)
    assert [i.tobytes() for i in out.images] == [i.tobytes() for i in expected.images]


@pytest.fixture
def saved(car: CAR, tmp_path: Path) -> Path:
    car.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer/config.json"])
def test_a_missing_file_is_named(saved: Path, missing: str) -> None:
    (saved / missing).unlink()
    with pytest.raises(InputError, match=f"holds no {Path(missing).name}"):
        CAR.from_pretrained(saved)


def test_another_image_tokenizer_is_refused(saved: Path, car: CAR) -> None:
    path = saved / "tokenizer" / "model.safetensors"
    state = load_file(path)
    state["quantizer.quantizer.weight"] += 0.5
    save_file(state, path)
    with pytest.raises(InputError, match="trained on another image tokenizer"):
        CAR.from_pretrained(saved)


def test_another_text_tokenizer_is_refused(saved: Path) -> None:
    larger = TextTokenizer(train_bpe(["the quick brown fox jumps over the lazy dog", "sphinx of black quartz"], 330))
    larger.save(saved)
    with pytest.raises(InputError, match="trained on another text tokenizer than the one in tokenizer"):
        CAR.from_pretrained(saved)


def test_an_unknown_setting_or_another_shape_is_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"max_txt_tokens": 3}))
    with pytest.raises(InputError, match="max_txt_tokens: there is no such setting"):
        CAR.from_pretrained(saved)
    config["backbone"]["num_hidden_layers"] = 1
    config["backbone"]["layer_types"] = ["full_attention"]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"does not fit its config\.json"):
        CAR.from_pretrained(saved)


def test_neither_folder_nor_repository(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither 'bundled', a folder, nor a hub repository"):
        CAR.from_pretrained(tmp_path / "nowhere")


def test_a_setting_that_is_none_comes_back(new_car: Callable[..., CAR], tmp_path: Path) -> None:
    """Phi-3 pads with token 32,000 unless it is told that there is none."""
    phi = {"model_type": "phi3", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
           "intermediate_size": 64, "pad_token_id": None}  # fmt: skip
    car = new_car(backbone=phi)
    car.save_pretrained(tmp_path)
    again = CAR.from_pretrained(tmp_path)
    assert again.backbone.config.pad_token_id is None
    assert torch.equal(again.generate("a green dog", temperature=0).ids, car.generate("a green dog", temperature=0).ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_generator_of_any_precision_loads_again(
    dtype: torch.dtype, new_car: Callable[..., CAR], tmp_path: Path
) -> None:
    saved = new_car().to(dtype)
    saved.save_pretrained(tmp_path)
    loaded = CAR.from_pretrained(tmp_path)
    assert {t.dtype for t in (*loaded.parameters(), *loaded.buffers()) if t.is_floating_point()} == {dtype}
    assert loaded.tokenizer.dtype == dtype
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.generate("a green dog").ids, saved.generate("a green dog").ids)


def test_an_image_tokenizer_with_other_maps_is_refused(new_car: Callable[..., CAR], tmp_path: Path) -> None:
    car = new_car()
    car.save_pretrained(tmp_path / "car")
    with torch.no_grad():
        next(car.tokenizer.encoder.parameters()).add_(1e-3)  # the same shapes and codebook, and other ids
    car.tokenizer.save_pretrained(tmp_path / "car/tokenizer")
    with pytest.raises(InputError, match="trained on another image tokenizer than the one in its folder"):
        CAR.from_pretrained(tmp_path / "car")

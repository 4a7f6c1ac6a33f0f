"""What a generator is measured with: the images of its recipe's test split, as ids and as pixels."""

from dataclasses import dataclass

from jaxtyping import Int32, UInt8
from torch import Tensor

from channelvq.car.data import TokenSet
from channelvq.car.model import CAR
from channelvq.data.build import build_mixture
from channelvq.data.split import Split
from channelvq.data.stream import Mixture, fixed_images
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.car_task import CARRecipe, token_set

IMAGES = 1024  # 65,536 tokens, 16 for each of 4,096 codes


@dataclass(frozen=True, eq=False)
class TokenSets:
    """What a generator is measured with: test scenes as ids, their pixels, and the ids it was trained on."""

    test: TokenSet
    images: UInt8[Tensor, "n 3 h w"]
    train_ids: Int32[Tensor, "m C"]


def token_sets(recipe: CARRecipe, tokenizer: CVQTokenizer, most: int | None = None) -> TokenSets:
    """The test scenes of a recipe in the ids of a tokenizer; most: of the training images, to tokenize no more."""
    images = recipe.objective.train_images
    train = token_set(recipe.data, tokenizer, "train", images if most is None else min(images, most))
    images = fixed_images(scenes(recipe, tokenizer, "test"), IMAGES)
    return TokenSets(token_set(recipe.data, tokenizer, "test", IMAGES), images, train.ids)


def scenes(recipe: CARRecipe, tokenizer: CVQTokenizer, split: Split) -> Mixture:
    """The scenes of a split as a recipe draws them."""
    return build_mixture(recipe.data, tokenizer.image_size, split, seed=0)


def parameters(car: CAR) -> dict[str, int]:
    """How many numbers training changes: in the backbone without its text embedding, in that, and in the rest."""
    text = car.text_embedding.weight.numel()
    backbone = sum(p.numel() for p in car.backbone.parameters()) - text
    return {"backbone": backbone, "text_embedding": text, "image": sum(p.numel() for p in car.new_parameters())}

"""What the small studies train: recipes by name, and what each is measured on.

axis: same network, data, start, steps and number of tokens; nested dropout off for both, as it has no meaning along the
patch axis. Paper, the comparison behind its table 1: at h*w = c both cost the same tokens, lookups and memory.
codebook: short runs with one setting changed at a time from `base`, on both axes.
ibq: short runs on one core.
scaling: both axes, and three of the family at 16,384. Paper: the codebook-size study (65,536 codes: 100 % use against
1.1 %).
table1: the methods of the paper's table 1, each at the rate that table1-tuning found best on validation images.
nested: shares and policies of nested channel dropout on two distributions.
"""

from dataclasses import dataclass

Run = tuple[str, tuple[str, ...]]  # a recipe's name and what is changed in it


@dataclass(frozen=True)
class Study:
    """question: what it answers. hours: that all of it takes on 2 cores, about. kinds: of held-out images (`held_out`),
    `images` of each.

    every_prefix: measure prefixes too, not the full length alone. features: also distances by our network. per_image:
    metrics whose value for each image is kept. shown: how many images of each kind are drawn as every run restores
    them, beside the result.
    """

    question: str
    hours: float
    runs: dict[str, Run]
    kinds: tuple[str, ...] = ("emoji", "photos")
    images: int = 768  # 2 * 768 * 64 = 98,304 tokens, 24 for each of 4,096 codes
    every_prefix: bool = False
    features: bool = False
    per_image: tuple[str, ...] = ()
    shown: int = 0


_LONG = ("train.steps=4000", "train.evaluate_every=2000")
_SHORT = ("train.steps=150", "train.checkpoint_every=150", "train.evaluate_every=150")
_WIDE = (
    "model.network.base_channels=32", "model.network.multipliers=[1]", "model.network.num_blocks=1",  # D = 16 * 16
    "model.quantizer.codebook_size=1024", "train.batch_size=16", "train.precision=no", "train.threads=1",
    "train.warmup_steps=20", "train.steps=100", "train.checkpoint_every=100", "train.evaluate_every=100",
)  # fmt: skip
_IBQ = {
    "distance, tau set, straight (default)": (),
    "distance, tau set": ("path=index",),
    "distance, tau = 1": ("path=index", "temperature=1"),
    "dot, tau = 1 (the paper's)": ("path=index", "logits=dot", "temperature=1"),
    "dot, tau set": ("path=index", "logits=dot"),
    "cosine, tau = 1": ("path=index", "logits=cosine", "temperature=1"),
    "cosine, tau set": ("path=index", "logits=cosine"),
    "uniform start: distance, tau set, straight": ("start=uniform",),
    "uniform start: distance, tau set": ("start=uniform", "path=index"),
    "uniform start: dot, tau = 1": ("start=uniform", "path=index", "logits=dot", "temperature=1"),
}
_SCALING = (
    "train.steps=700", "train.evaluate_every=700", "train.checkpoint_every=350",
    "objective.start_images=2048", "model.quantizer.kmeans_iterations=5",  # 131,072 tokens to start 65,536 codes from
)  # fmt: skip
_SIZES = (1024, 4096, 16384, 65536)
_TABLE = ("train.steps=700", "train.evaluate_every=700", "train.checkpoint_every=350", "train.threads=1")
METHODS = {
    "VQGAN": ("patch", "plain"),
    "VQGAN-LC": ("patch", "lc"),
    "SimVQ": ("patch", "simvq"),
    "IBQ": ("patch", "ibq"),
    "CVQ": ("channel", "plain"),
    "CVQ + SimVQ": ("channel", "simvq"),
    "CVQ + IBQ": ("channel", "ibq"),
}
RATES = ("5e-4", "1e-3")
# Of RATES, the better one on validation images: results/table1-tuning-small.json, kept true by a test.
BEST_RATE = dict.fromkeys(METHODS, "1e-3")
# Four times the tokens: as many more channels, or a grid of 16 x 16 patches by a network that halves once less.
_LARGER = {"CVQ": ("model.latent_channels=256",),
           "VQGAN": ("model.network.multipliers=[1]", "model.network.base_channels=96")}  # fmt: skip
_NESTED = ("train.steps=500", "train.evaluate_every=500", "train.checkpoint_every=250", "train.threads=1")
_POLICIES = {
    **{f"alpha {alpha:g}": (f"nested.alpha={alpha:g}",) for alpha in (0.0, 0.25, 0.5, 1.0)},
    "alpha 0.25, one length a batch": ("nested.alpha=0.25", "nested.policy=batch"),
    "alpha 0.25, powers of two": ("nested.alpha=0.25", "nested.lengths=powers"),
    "alpha 0.5, curriculum": (
        "nested.alpha=0.5", "nested.curriculum.alpha=0", "nested.curriculum.shortest=1", "nested.curriculum.until=0.5",
    ),
}  # fmt: skip


def _table(method: str, rate: str, *more: str) -> Run:
    axis, kind = METHODS[method]
    settings = (f"model.quantizer.kind={kind}", f"train.learning_rate={rate}")
    return f"small/axis-{axis}", (*_TABLE, *settings, *more)


def _seeds(name: str, method: str, *more: str) -> dict[str, Run]:
    rate = BEST_RATE[method]
    return {f"{name}, seed {s}": _table(method, rate, *([f"train.seed={s}"] if s else []), *more) for s in range(3)}


STUDIES: dict[str, Study] = {
    "axis": Study(
        "Channel-wise against patch-wise: same network, data, start, steps and tokens.",
        2,
        {
            f"{axis}, seed {seed}": (f"small/axis-{axis}", (*_LONG, f"train.seed={seed}"))
            for seed in range(3)
            for axis in ("channel", "patch")
        },
    ),
    "codebook": Study(
        "What keeps the plain codebook alive: one setting changed at a time.",
        0.3,
        {
            name: (f"small/axis-{'patch' if name.startswith('patch') else 'channel'}", (*_SHORT, *overrides))
            for name, overrides in {
                "base": (),
                "learning rate x 4": ("train.learning_rate=2e-3",),
                "learning rate / 4": ("train.learning_rate=1.25e-4",),
                "Adam(0.5, 0.9)": ("train.betas=[0.5,0.9]",),
                "beta 0.02": ("model.quantizer.beta=0.02",),
                "beta 1": ("model.quantizer.beta=1.0",),
                "pixel loss x 10": ("objective.pixel_weight=10",),
                "50 steps without codebook": ("objective.start_step=50",),
                "uniform start": ("model.quantizer.start=uniform",),
                "patch": (),
                "patch, learning rate x 4": ("train.learning_rate=2e-3",),
                "patch, learning rate / 4": ("train.learning_rate=1.25e-4",),
            }.items()
        },
    ),
    "ibq": Study(
        "Which form of index backpropagation holds at a code dimension of 256.",
        0.3,
        {
            "plain": ("small/axis-channel", _WIDE),
            "uniform start: plain": ("small/axis-channel", (*_WIDE, "model.quantizer.start=uniform")),
            **{
                name: (
                    "small/axis-channel",
                    (*_WIDE, "model.quantizer.kind=ibq", *(f"model.quantizer.{each}" for each in settings)),
                )
                for name, settings in _IBQ.items()
            },
        },
    ),
    "scaling": Study(
        "From 1,024 to 65,536 codes, channel-wise and patch-wise: use and quality.",
        1.5,
        {
            " ".join(filter(None, (axis, kind, f"{codes:,}"))): (
                f"small/axis-{axis}",
                (*_SCALING, f"model.quantizer.kind={kind or 'plain'}", f"model.quantizer.codebook_size={codes}"),
            )
            for axis, kind, codes in (
                *((axis, "", codes) for codes in _SIZES for axis in ("channel", "patch")),
                ("channel", "simvq", 16384),
                ("channel", "ibq", 16384),
                ("patch", "simvq", 16384),
            )
        },
        images=4096,  # 524,288 tokens, 8 for each of 65,536 codes
    ),
    "losses": Study(
        "Pixel loss alone against the full recipe: perceptual and adversarial loss, and the weight of short prefixes.",
        1,
        {
            "pixel": ("small/bundled", ("train.steps=2000", "model.quantizer.kind=plain")),
            "full": ("small/full", ()),
            "full, one weight for every prefix": ("small/full", ("objective.adversarial.prefix_weight=false",)),
        },
        features=True,
        shown=6,
    ),
    "family": Study(
        "Would another quantizer make a better bundled tokenizer? small/bundled for 2,000 steps.",
        0.5,
        {kind: ("small/bundled", ("train.steps=2000", f"model.quantizer.kind={kind}")) for kind in ("plain", "simvq")},
    ),
    "table1-tuning": Study(
        "The learning rate of each method of table 1, chosen on validation images.",
        1,
        {f"{method}, rate {rate}": _table(method, rate) for rate in RATES for method in METHODS},
    ),
    "table1": Study(
        "The methods of the paper's table 1 at small scale, three seeds, and two budgets of tokens.",
        2.5,
        {
            **{name: run for method in METHODS for name, run in _seeds(method, method).items()},
            **{name: run for m, o in _LARGER.items() for name, run in _seeds(f"{m}, 256 tokens", m, *o).items()},
        },
        features=True,
        per_image=("psnr", "ssim", "perceptual"),
    ),
    "nested": Study(
        "Shares and policies of nested channel dropout on emoji and photographs: every prefix.",
        0.5,
        {name: ("small/axis-channel", (*_NESTED, *settings)) for name, settings in _POLICIES.items()},
        every_prefix=True,
    ),
    "nested-scenes": Study(
        "Shares and policies of nested channel dropout on drawn scenes: every prefix.",
        0.5,
        {name: ("small/scenes-tokenizer", (*_NESTED, *settings)) for name, settings in _POLICIES.items()},
        kinds=("scenes",),
        images=1536,
        every_prefix=True,
    ),
}

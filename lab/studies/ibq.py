"""Which form of index backpropagation holds at a code dimension of 256.

Short runs on one core.
"""

from lab.study import RecipeStudy, Tables, runs_table

HOURS = 0.3
RESULT = "ibq-small.json"
_WIDE = (
    "model.network.base_channels=32", "model.network.multipliers=[1]", "model.network.num_blocks=1",  # D = 16 * 16
    "model.quantizer.codebook_size=1024", "train.batch_size=16", "train.precision=no", "train.threads=1",
    "train.warmup_steps=20", "train.steps=100", "train.checkpoint_every=100", "train.evaluate_every=100",
)  # fmt: skip
_FORMS = {
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
STUDY = RecipeStudy({
    "plain": ("small/axis-channel", _WIDE),
    "uniform start: plain": ("small/axis-channel", (*_WIDE, "model.quantizer.start=uniform")),
    **{
        name: (
            "small/axis-channel",
            (*_WIDE, "model.quantizer.kind=ibq", *(f"model.quantizer.{setting}" for setting in settings)),
        )
        for name, settings in _FORMS.items()
    },
})  # fmt: skip
TABLES: Tables = {"ibq": (RESULT, runs_table)}

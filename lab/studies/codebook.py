"""What keeps the plain codebook alive: one setting changed at a time.

Short runs that differ from `base` in one setting, on both axes.
"""

from lab.study import RecipeStudy, Tables, runs_table

HOURS = 0.3
RESULT = "codebook-small.json"
_SHORT = ("train.steps=150", "train.checkpoint_every=150", "train.evaluate_every=150")
_CHANGES = {
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
}
STUDY = RecipeStudy({
    name: (f"small/axis-{'patch' if name.startswith('patch') else 'channel'}", (*_SHORT, *changes))
    for name, changes in _CHANGES.items()
})  # fmt: skip
TABLES: Tables = {"codebook": (RESULT, runs_table)}

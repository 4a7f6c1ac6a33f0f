"""Channel-wise against patch-wise: same network, data, start, steps and tokens.

Nested dropout is off for both, as it has no meaning along the patch axis. Paper, the comparison behind its table 1: at
h*w = c both cost the same tokens, lookups and memory.
"""

from lab.study import RecipeStudy, Tables, runs_table

HOURS = 2
RESULT = "axis-small.json"
_LONG = ("train.steps=4000", "train.evaluate_every=2000")
STUDY = RecipeStudy({
    f"{axis}, seed {seed}": (f"small/axis-{axis}", (*_LONG, f"train.seed={seed}"))
    for seed in range(3)
    for axis in ("channel", "patch")
})  # fmt: skip
TABLES: Tables = {"axis": (RESULT, runs_table)}

"""Tokens that start as a linear coder: channel-wise against patch-wise, with equal start, maps, networks and steps.

64 tokens of 4,096 codes, 96 bytes an image. Patches take the quantizer that serves them best: one codebook for all
places, started by k-means, beside a map for each place as on the channel axis. docs/decisions/0014.
"""

from lab.study import RecipeStudy, Tables, runs_table

HOURS = 5
RESULT = "tokens.json"
SCHEMES = {
    "channel": "small/tokens-channel",
    "patch": "small/tokens-patch",
}
STUDY = RecipeStudy(
    {
        f"{scheme}, seed {seed}": (recipe, (f"train.seed={seed}",))
        for seed in range(3)
        for scheme, recipe in SCHEMES.items()
    },
    every_prefix=True,
    per_image=("psnr",),
)
TABLES: Tables = {"tokens": (RESULT, runs_table)}

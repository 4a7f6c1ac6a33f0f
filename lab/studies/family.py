"""Would another quantizer make a better bundled tokenizer? small/conv for 2,000 steps."""

from lab.study import RecipeStudy, Tables, runs_table

HOURS = 0.5
RESULT = "family-small.json"
STUDY = RecipeStudy(
    {kind: ("small/conv", ("train.steps=2000", f"model.quantizer.kind={kind}")) for kind in ("plain", "simvq")}
)
TABLES: Tables = {"family": (RESULT, runs_table)}

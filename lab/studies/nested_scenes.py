"""Shares and policies of nested channel dropout on drawn scenes: every prefix."""

from lab.studies.nested import POLICIES, SHORT, draw, prefixes
from lab.study import RecipeStudy, Tables

HOURS = 0.5
RESULT = "nested-scenes-small.json"
STUDY = RecipeStudy(
    {name: ("small/scenes-tokenizer", (*SHORT, *settings)) for name, settings in POLICIES.items()},
    kinds=("scenes",),
    images=1536,
    every_prefix=True,
    plot=draw,
)
TABLES: Tables = {"nested-scenes": (RESULT, prefixes)}

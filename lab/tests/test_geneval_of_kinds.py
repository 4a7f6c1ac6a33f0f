"""Whether generators on one tokenizer draw better than on another: differences and their intervals."""

import pytest

from lab.geneval_of_kinds import HEADINGS, cells, claims, difference, of_tokenizer

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def measured(*right: int, images: int = 2, tasks: tuple[str, ...] = TASKS) -> dict[str, object]:
    """A run that got so many images of each prompt right, in every task."""
    share = sum(right) / (images * len(right))
    of = {task: [[each, images] for each in right] for task in tasks}
    return {"scores": {"overall": share} | dict.fromkeys(tasks, share), "right": of}


def test_the_difference_is_that_of_the_mean_scores() -> None:
    first = [measured(2, 1, 0, 1), measured(2, 2, 0, 0)]
    second = [measured(0, 1, 0, 0), measured(0, 0, 0, 1)]
    mean, low, high = difference(first, second)
    assert mean == pytest.approx(0.5 - 0.125)
    assert low < mean < high


def test_a_difference_that_every_prompt_and_seed_shows_has_no_width() -> None:
    assert difference([measured(2, 2)] * 3, [measured(1, 1)] * 3) == (0.5, 0.5, 0.5)


def test_tasks_count_alike_however_many_prompts_they_have() -> None:
    def run(many: int, few: int) -> dict[str, object]:
        return {"right": {"counting": [[many, 2]] * 8, "colors": [[few, 2]]}}

    assert difference([run(2, 0)], [run(0, 0)])[0] == pytest.approx(0.5)


def test_seeds_that_differ_widen_the_interval() -> None:
    same = difference([measured(1, 1)] * 2, [measured(0, 0)] * 2)
    unlike = difference([measured(2, 2), measured(0, 0)], [measured(0, 0)] * 2)
    assert unlike[0] == same[0]
    assert unlike[2] - unlike[1] > same[2] - same[1]


def test_tables_tell_means_seeds_and_verdicts() -> None:
    runs = {"nested": (measured(2, 2), measured(2, 2)), "not nested": (measured(1, 1), measured(1, 1)),
            "patch-wise": (measured(2, 0), measured(0, 2))}  # fmt: skip
    records = [
        {"name": f"{name}, seed {seed}", "metrics": {"geneval": each}}
        for name, of in runs.items()
        for seed, each in enumerate(of)
    ]
    result = {"records": [{"name": "nested tokenizer", "metrics": {}}, *records]}
    assert of_tokenizer(result, "not nested") == list(runs["not nested"])
    assert cells(of_tokenizer(result, "nested")) == ["1.000", "1.000, 1.000", *["1.000"] * len(TASKS)]
    verdicts = {claim: verdict for claim, _, verdict in claims(result).rows}
    assert verdicts == {
        "nested above not nested": "holds", "nested above patch-wise": "holds", "not nested above patch-wise": "open",
    }  # fmt: skip
    assert HEADINGS[3:] == tuple(task.replace("_", " ") for task in TASKS)

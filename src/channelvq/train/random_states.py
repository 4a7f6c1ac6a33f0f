"""The states of the global random generators of Python, numpy and torch as tensors: no pickle, and to the bit."""

import random

import numpy as np
import torch
from torch import Tensor


def random_states() -> dict[str, Tensor]:
    """All of them, by name."""
    _, words, gauss = random.getstate()
    state = np.random.get_state(legacy=False)
    numpy = state["state"]
    return {
        "python": torch.tensor(words),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(numpy["key"].astype(np.int64)),
        "numpy_places": torch.tensor([numpy["pos"], state["has_gauss"]]),
        "numpy_gauss": torch.tensor(state["gauss"], dtype=torch.float64),
        "torch": torch.get_rng_state(),
        **{f"cuda_{i}": device for i, device in enumerate(_cuda_states())},
    }


def set_random_states(states: dict[str, Tensor]) -> None:
    """Go on from what `random_states` gave; raises LookupError or ValueError where something is missing or damaged."""
    gauss = states["python_gauss"].tolist()  # the second number of a pair of normal ones, if it is still to come
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    position, has_gauss = states["numpy_places"].tolist()
    key = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, position, has_gauss, float(states["numpy_gauss"])))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([states[f"cuda_{i}"] for i in range(torch.cuda.device_count())])


def _cuda_states() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

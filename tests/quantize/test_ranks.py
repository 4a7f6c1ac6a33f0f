"""Two processes train one quantizer: equal to the bit on both, and what one process with the global batch gets.

This file is also the program of each process: python test_ranks.py RANK WORLD FOLDER.
"""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from channelvq import ChannelVQ

CASES: dict[str, dict[str, object]] = {
    "plain": {"kind": "plain"},
    "ema": {"kind": "ema", "revive_after": 0.0},
    "ema by cosine": {"kind": "ema", "revive_after": 0.0, "distance": "cosine"},
    "simvq": {"kind": "simvq"},
    "simvq-tokenwise": {"kind": "simvq-tokenwise", "num_tokens": 8},
    "simvq-residual": {"kind": "simvq-residual", "num_tokens": 8},
    "ibq": {"kind": "ibq", "temperature": 0.5},
    "ibq by index": {"kind": "ibq", "temperature": 0.5, "path": "index"},
    "lc": {"kind": "lc"},
    "fsq": {"kind": "fsq"},
    "lfq": {"kind": "lfq"},
    # Below here a process draws or measures on its own tokens, so one process gets something else.
    "plain from the first batch": {"kind": "plain"},
    "ema from the first batch": {"kind": "ema"},
    "simvq-tokenwise from the first batch": {"kind": "simvq-tokenwise", "num_tokens": 8},
    "ema with revival": {"kind": "ema", "start": "uniform", "revive_after": 1.0},
    "ibq by temperature": {"kind": "ibq"},
    "lfq from the first batch": {"kind": "lfq"},
}
OWN_TOKENS = ("from the first batch", "revival", "by temperature")
STEPS, BATCH = 5, 8


class Toy(nn.Module):
    def __init__(self, settings: dict[str, object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.vq = ChannelVQ(32, 16, **settings)  # type: ignore[arg-type]

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        out = self.vq(self.encoder(x), keep)
        return (self.decoder(out.z_q) - x).square().mean() + out.loss


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The global batch: images that differ much from one half to the other, and how many tokens each keeps."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 8, 4, 4, generator=generator) + torch.linspace(-2, 2, BATCH)[:, None, None, None]
    return x, torch.arange(8) < torch.randint(1, 9, (BATCH, 1), generator=generator)


def fit(name: str, rank: int, world: int) -> dict[str, Tensor]:
    toy = Toy(CASES[name])
    if not name.endswith(OWN_TOKENS):
        toy.vq.start_from(batch(99)[0], torch.Generator().manual_seed(rank))
    # Buffers are not broadcast from rank 0 before each step: they must be equal on their own.
    model = DistributedDataParallel(toy, broadcast_buffers=False) if world > 1 else toy
    optimizer = torch.optim.SGD(toy.parameters(), 0.02)
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for step in range(STEPS):
        optimizer.zero_grad()
        x, keep = batch(step)
        model(x[part], keep[part]).backward()
        optimizer.step()
    return toy.state_dict() | {"table": toy.vq.codes().detach()}


def main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
    names = [name for name in CASES if world > 1 or not name.endswith(OWN_TOKENS)]
    torch.save({name: fit(name, rank, world) for name in names}, f"{folder}/{rank}-of-{world}.pt")
    if world > 1:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """The states at the end: of one process alone, and of both processes of two."""
    folder = tmp_path_factory.mktemp("ranks")
    places = [(0, 1), (0, 2), (1, 2)]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(world), str(folder)],
            stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        )
        for rank, world in places
    ]  # fmt: skip
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
    return [torch.load(folder / f"{rank}-of-{world}.pt") for rank, world in places]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_equal_to_the_bit(name: str, runs: list[dict[str, dict[str, Tensor]]]) -> None:
    _, first, second = runs
    fresh = Toy(CASES[name])
    assert not torch.equal(first[name]["table"], fresh.vq.codes())
    for key, tensor in first[name].items():
        assert torch.equal(tensor, second[name][key]), key


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith(OWN_TOKENS)])
def test_two_processes_do_what_one_does(name: str, runs: list[dict[str, dict[str, Tensor]]]) -> None:
    one, two, _ = runs
    for key, tensor in one[name].items():
        # Sums over halves are added in another order; nothing else differs.
        torch.testing.assert_close(two[name][key], tensor, atol=1e-5, rtol=1e-5)


def test_codes_were_revived(runs: list[dict[str, dict[str, Tensor]]]) -> None:
    table = runs[1]["ema with revival"]["table"]
    # The uniform start lies within +-1/32; a code farther off was moved by tokens.
    assert (table.abs().amax(1) > 1 / 16).sum() > 24


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), str(Path(sys.argv[3])))

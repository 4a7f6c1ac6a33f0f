"""Work by Ray on two nodes, which are processes of this machine: nothing lost, nothing twice, also without a node."""

import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from channelvq import on_ray
from channelvq.bulk import tokenize_shards
from channelvq.data.files.token_shards import read_manifest
from channelvq.errors import InputError

pytest.importorskip("ray", exc_type=ImportError)
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have one address of their own only"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]

HERE = "127.0.0.2"  # Ray takes 127.0.0.1 for the address in the network; nothing listens beyond loopback


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes of one processor each, and this process connected to them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is put into the home folder
        import ray
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "include_dashboard": False, "node_ip_address": HERE,
                "object_store_memory": 100 * 2**20}  # fmt: skip
        made = Cluster(initialize_head=True, head_node_args=node)
        made.add_node(**node)
        ray.init(address=made.address, log_to_driver=False, _node_ip_address=HERE)
        yield made
        ray.shutdown()
        made.shutdown()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def where(number: int, folder: Path) -> tuple[str, int]:
    """Its node and number; waits for the call of the other node, so that one alone cannot do all."""
    import time

    import ray

    node = ray.get_runtime_context().get_node_id()
    (folder / f"{number}-{node}").touch()
    end = time.monotonic() + 60
    while len({path.name.split("-")[1] for path in folder.iterdir()}) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    return node, number


def refuse(number: int) -> None:
    raise InputError(f"number {number} is not welcome")


def test_two_nodes_share_the_work_and_give_the_same_files(cluster: Any, tars: Path, tiny_tokenizer: Path,
                                                          tmp_path: Path) -> None:  # fmt: skip
    (tmp_path / "calls").mkdir()
    found = list(on_ray.outcomes(partial(where, folder=tmp_path / "calls"), range(6)))
    assert sorted(number for _, number in found) == list(range(6))
    assert len(Counter(node for node, _ in found)) == 2
    (tars / "images-00003.tar").write_bytes((tars / "images-00000.tar").read_bytes()[:3000])
    for engine, workers in (("local", 1), ("ray", None)):
        with pytest.raises(InputError, match=r"1 of 4 shards cannot be read.*images-00003\.tar"):
            tokenize_shards(tars, tmp_path / engine, tiny_tokenizer, engine=engine, workers=workers)  # type: ignore[arg-type]
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_what_one_engine_began_the_other_ends(cluster: Any, tars: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenize_shards(tars, tmp_path / "whole", tiny_tokenizer)
    first, *rest = sorted(tars.glob("*.tar"))
    tokenize_shards([first], tmp_path / "parts", tiny_tokenizer)
    said: list[str] = []
    tokenize_shards(tars, tmp_path / "parts", tiny_tokenizer, engine="ray", workers=1, say=said.append)
    assert sorted(line.split(":")[0] for line in said) == [path.stem for path in rest]
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    shutil.rmtree(tars)
    assert read_manifest(tmp_path / "parts").counts()["images"] == 14


def test_an_error_of_the_work_is_its_own(cluster: Any) -> None:
    with pytest.raises(InputError, match=r"^number 3 is not welcome$"):
        list(on_ray.outcomes(refuse, [3]))


def test_a_node_that_goes_away_takes_no_work_with_it(cluster: Any, tmp_path: Path) -> None:
    third = cluster.add_node(num_cpus=1, include_dashboard=False, node_ip_address=HERE)
    (tmp_path / "calls").mkdir()
    each = on_ray.outcomes(partial(where, folder=tmp_path / "calls"), range(9), at_once=3)
    found = [next(each)]
    cluster.remove_node(third, allow_graceful=False)
    found += each
    assert sorted(number for _, number in found) == list(range(9))


def test_no_cluster_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match=r"RAY_ADDRESS '127\.0\.0\.1:1': no Ray cluster answers there"):
        list(on_ray.outcomes(refuse, [1]))


def refused(**_: Any) -> None:
    raise ConnectionError("nobody there")

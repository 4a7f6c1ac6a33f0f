"""Work on many machines by Ray: a function over many inputs, and its outcomes as they are done.

Each call is a Ray task: Ray finds it a free processor on some machine, and does it again elsewhere if that goes away.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from channelvq.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


def outcomes(
    work: Callable[[T], R], inputs: Sequence[T], *, at_once: int | None = None, gpu: bool = False
) -> Iterator[R]:
    """What `work` gives for each input, as it is done; `work` has to be a function that other processes can import.

    On the cluster that RAY_ADDRESS names ("auto": the one that `ray start` joined this machine to), else on this
    machine alone. at_once: calls at a time; None: as many as there are processors. gpu: a call takes a GPU, not a
    processor. Every call is made in this process's folder, by its path: machines have to mount it alike. Raises
    InputError where Ray is not installed, cannot be reached, or has lost a call's machine again and again.
    """
    with _connected(at_once) as ray:
        places = at_once or max(1, int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1)))
        task = ray.remote(num_cpus=0 if gpu else 1, num_gpus=1 if gpu else 0)(_in_folder)
        waiting, running = list(reversed(inputs)), []
        try:
            while waiting or running:
                while waiting and len(running) < places:
                    running.append(task.remote(Path.cwd(), work, waiting.pop()))
                (done,), running = ray.wait(running)
                yield ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, InputError) else error from None
        except ray.exceptions.RayError as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise InputError(f"ray: a process or its machine was lost ({why}); give the same command again") from None


def _in_folder(folder: Path, work: Callable[[Any], Any], given: Any) -> Any:
    try:
        os.chdir(folder)
    except OSError:
        raise InputError(f"{folder} is not there on machine {os.uname().nodename}; mount it on all of them") from None
    return work(given)


@contextmanager
def _connected(processors: int | None) -> Iterator[Any]:
    """Ray, connected to a cluster; one that is begun here ends with the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError("Ray is not installed; pip install 'channelvq[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address := os.environ.get("RAY_ADDRESS"):
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, ValueError) as error:
                raise InputError(f"RAY_ADDRESS {address!r}: no Ray cluster answers there ({error})") from None
        else:  # "local": another process's cluster would end with that; nothing listens beyond loopback
            here = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            ray.init(address="local", num_cpus=processors, **here, **quiet)
        yield ray
    finally:
        ray.shutdown()

"""The one training loop, over Hugging Face Accelerate: setup -> fit -> evaluate -> save.

A task (train/tokenizer_task.py, ...) says what is trained on what; the engine does everything that all tasks share:
schedules, precision, clipping, moving averages, progress, metrics, checkpoints, resuming and stopping well.
"""

import json
import math
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from channelvq.config import save
from channelvq.errors import DivergedError, InputError
from channelvq.train.checkpoint import check_run_folder, checkpoints, load_checkpoint, save_checkpoint
from channelvq.train.config import TrainConfig
from channelvq.train.progress import Progress


class Task(Protocol):
    """What the engine needs to know of a task.

    models and optimizers: by name; each optimizer makes one update a step, in this order, of the model of its name and
    of helpers, models without an optimizer of their own, whose parameters it holds. `losses` gets the prepared
    (possibly wrapped) models and gives the weighted, named terms of one optimizer's objective, plus figures to log; no
    terms, no update.
    """

    models: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    idle_parameters: bool  # whether some steps leave out parameters, which distributed training has to look for

    def start(self) -> None:
        """Once, before the first step of a run that does not resume."""
        ...

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[Tensor]:
        """Batches of this rank from a step on; the data position is the step, so nothing else needs restoring."""
        ...

    def losses(
        self, name: str, models: dict[str, nn.Module], batch: Tensor, step: int, rank: int
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """(terms, figures) of optimizer `name` on this batch."""
        ...

    def evaluate(self, models: dict[str, nn.Module], run_dir: Path, step: int) -> dict[str, float]:
        """Figures on held-out data; may write pictures under run_dir/samples."""
        ...

    def alarms(self, figures: dict[str, float]) -> list[str]:
        """Lines for people about what an evaluation's figures show to go wrong, each once a run, with its remedy."""
        ...

    def save(self, models: dict[str, nn.Module], folder: Path) -> None:
        """What `from_pretrained` loads."""
        ...


def schedule(config: TrainConfig, step: int) -> float:
    """Learning rate at a step over its peak: linear warm-up, then a cosine down to `final_lr_ratio`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of the weights; the decay grows to its value, so that the start is soon forgotten."""

    def average(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        return torch.lerp(mean, value, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return AveragedModel(model, avg_fn=average)


class Engine:
    """Trains a task. `fit` returns the last evaluation, or None when a signal stopped it before the end."""

    def __init__(self, task: Task, config: TrainConfig, resolved: Any) -> None:
        self.task, self.config = task, config
        self.run_dir = Path(config.output_dir)
        # Accelerate keeps the first run's precision for the process; several runs in one process may differ.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=config.precision,
            project_config=ProjectConfiguration(project_dir=str(self.run_dir)),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=task.idle_parameters)],
        )
        self.stopping: str | None = None
        self._prepare_folder(resolved)
        self._prepare_models()

    def _prepare_folder(self, resolved: Any) -> None:
        check_run_folder(self.run_dir, resolved, self.config.resume)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (self.run_dir / "samples").mkdir(parents=True, exist_ok=True)
            save(resolved, self.run_dir / "config.yaml")
        self.accelerator.wait_for_everyone()

    def _prepare_models(self) -> None:
        self.models = {name: self.accelerator.prepare_model(model) for name, model in self.task.models.items()}
        self.optimizers = {n: self.accelerator.prepare_optimizer(o) for n, o in self.task.optimizers.items()}
        self.schedulers = {
            name: LambdaLR(optimizer, lambda step: schedule(self.config, step))
            for name, optimizer in self.task.optimizers.items()
        }
        # A helper is not evaluated, so it has no average.
        averaged = self.optimizers if self.config.ema else ()
        self.averages = {name: moving_average(self.task.models[name], self.config.ema) for name in averaged}
        self.accelerator.register_for_checkpointing(*self.schedulers.values(), *self.averages.values())

    def fit(self) -> dict[str, float] | None:
        """Run from the start or the newest checkpoint to `steps`; evaluate; write final/."""
        config = self.config
        start_step = self._start_step()
        batches = self.task.batches(start_step, self.accelerator.process_index, self.accelerator.num_processes)
        figures = None
        with (
            _Signals(self),
            Progress(config.steps, start_step, self.run_dir, self.accelerator.is_main_process) as progress,
        ):
            for step in range(start_step, config.steps):
                logged = self._step(next(batches), step)
                done = step + 1
                last = done == config.steps
                if done % config.log_every == 0 or last or step == start_step:
                    progress.log(done, self._over_ranks(logged), config.batch_size)
                if done % config.evaluate_every == 0 or last:
                    figures = self._evaluate(done)
                    progress.log_evaluation(done, figures)
                    for line in self.task.alarms(figures):
                        progress.say(line)
                if done % config.checkpoint_every == 0 or last or self.stopping:
                    save_checkpoint(self.accelerator, self.run_dir, done, config.keep_checkpoints)
                if self.stopping and not last:
                    progress.say(f"stopped by {self.stopping} after step {done}; go on with train.resume=true")
                    return None
        if figures is None:  # resumed a run that had already ended
            figures = self._evaluate(config.steps)
        self._save_final()
        return figures

    def _start_step(self) -> int:
        set_seed(self.config.seed)
        found = checkpoints(self.run_dir)
        if not found:
            self.task.start()
            return 0
        step = load_checkpoint(self.accelerator, found[-1])
        if step > self.config.steps:
            raise InputError(f"{self.run_dir} has already done {step} steps, train.steps is {self.config.steps}")
        return step

    def _step(self, batch: Tensor, step: int) -> dict[str, float]:
        batch = batch.to(self.accelerator.device)
        logged: dict[str, float] = {}
        for name, optimizer in self.optimizers.items():
            model = self.models[name]
            model.train()
            terms, figures = self._losses(name, batch, step)
            if not terms:  # nothing to do yet: without gradients a step changes nothing, but the schedule goes on
                self.task.optimizers[name].step()
                self.schedulers[name].step()
                continue
            total = sum(terms.values(), start=torch.zeros((), device=self.accelerator.device))
            logged |= {key: float(value.detach()) for key, value in terms.items()} | figures
            self.accelerator.backward(total)
            if self.config.clip_norm is not None:
                norm = self.accelerator.clip_grad_norm_(self._updated_by(name), self.config.clip_norm)
                logged[f"{name}_gradient_norm"] = float("nan" if norm is None else norm)
            optimizer.step()
            self.schedulers[name].step()
            optimizer.zero_grad()
            if name in self.averages:
                self._update_average(name)
        logged["learning_rate"] = float(next(iter(self.schedulers.values())).get_last_lr()[0])
        return logged

    def _updated_by(self, name: str) -> list[nn.Parameter]:
        """Parameters of the model of an optimizer's name, and of the helpers that it updates with it."""
        held = {id(p) for group in self.task.optimizers[name].param_groups for p in group["params"]}
        helpers = [model for other, model in self.models.items() if other not in self.optimizers]
        helping = (p for helper in helpers for p in helper.parameters() if id(p) in held)
        return [*self.models[name].parameters(), *helping]

    def _over_ranks(self, figures: dict[str, float]) -> dict[str, float]:
        """Means over ranks, each of which has seen its share of the global batch."""
        if self.accelerator.num_processes == 1:
            return figures
        values = torch.tensor(list(figures.values()), device=self.accelerator.device)
        means = cast(Tensor, self.accelerator.reduce(values, "mean"))
        return dict(zip(figures, means.tolist(), strict=True))

    def _update_average(self, name: str) -> None:
        average, model = self.averages[name], self.task.models[name]
        average.update_parameters(model)
        # Buffers (such as "the codebook has been started") are copied, not averaged.
        for mine, theirs in zip(average.module.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def _losses(self, name: str, batch: Tensor, step: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The task's terms, all finite; raises DivergedError with the step, the term and the last good checkpoint."""
        try:
            with self.accelerator.autocast():
                terms, figures = self.task.losses(name, self.models, batch, step, self.accelerator.process_index)
        except InputError as error:  # the lookup refuses what is not finite
            raise self._diverged(str(error), step) from None
        for key, value in terms.items():
            if not torch.isfinite(value).all():
                raise self._diverged(f"loss term {key!r} is {value.item()}", step)
        return terms, figures

    def _diverged(self, what: str, step: int) -> DivergedError:
        found = checkpoints(self.run_dir)
        good = found[-1] if found else "none yet"
        return DivergedError(f"{what} at step {step + 1}; last good checkpoint: {good}; lower the learning rate")

    def evaluated_models(self) -> dict[str, nn.Module]:
        """The moving averages where there are any, else the models themselves, unwrapped."""
        return {
            name: self.averages[name].module if name in self.averages else model
            for name, model in self.task.models.items()
        }

    def _evaluate(self, step: int) -> dict[str, float]:
        if not self.accelerator.is_main_process:
            return {}
        return self.task.evaluate(self.evaluated_models(), self.run_dir, step)

    def _save_final(self) -> None:
        if self.accelerator.is_main_process:
            self.task.save(self.evaluated_models(), self.run_dir / "final")


class _Signals:
    """SIGTERM and SIGINT let the step end and a checkpoint be written; the old handlers come back afterwards."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            self.engine.stopping = signal.Signals(number).name

        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self.before[number] = signal.signal(number, stop)
            except ValueError:  # not in the main thread: the caller keeps its own handling
                return

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def training_seconds(run_dir: str | Path, batch_size: int) -> float:
    """Seconds that the steps of a run took over all its sittings, evaluations not counted."""
    lines = [line for line in read_metrics(run_dir) if line["kind"] == "train"]
    return sum((b["step"] - a["step"]) * batch_size / b["images_per_second"] for a, b in pairwise(lines))


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, one dict each."""
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]

"""The one training loop, over Hugging Face Accelerate: setup -> fit -> evaluate -> save.

A task (train/task.py) says what is trained on what; the engine does everything that all tasks share: schedules,
precision, clipping, moving averages, progress, metrics, checkpoints, resuming and stopping well.
"""

import logging
import math
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from channelvq.config import save
from channelvq.errors import DivergedError, InputError, NotFiniteError
from channelvq.files import check_not_held, only_writer, parse_json
from channelvq.outputs import check_outputs
from channelvq.train import launch
from channelvq.train.averages import Average, ShardedAverage
from channelvq.train.background import Background
from channelvq.train.checkpoint import (
    RunState,
    check_run_folder,
    checkpoints,
    load_checkpoint,
    read_state,
    save_checkpoint,
    sweep_partial,
)
from channelvq.train.config import TrainConfig
from channelvq.train.progress import Progress, tell
from channelvq.train.signals import StopSignals
from channelvq.train.task import Figures, Losses, Recipe, Task
from channelvq.train.watch import Watch

RUN_FILES = ("config.yaml", "checkpoints", "inputs.json", "metrics.jsonl")  # by which a folder is one of a run


def schedule(config: TrainConfig, step: int) -> float:
    """Learning rate at a step over its peak: linear warm-up, then a cosine down to `final_lr_ratio`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def check_run(recipe: Recipe) -> None:
    """InputError where a run's folder, or what it asks to be installed, would stop it later."""
    run_dir = Path(recipe.train.output_dir)
    check_outputs(folder=run_dir, own=RUN_FILES)
    check_not_held(run_dir)
    check_run_folder(run_dir, recipe, recipe.train.resume)
    launch.check_installed(recipe.train)


class Engine:
    """Trains a task. `fit` returns the last evaluation, or None when a signal stopped it before the end.

    checked: `check_run` has been called. signals: told of the one that stopped it.
    """

    def __init__(
        self, task: Task, config: TrainConfig, resolved: Any, *, checked: bool = False,
        signals: StopSignals | None = None,
    ) -> None:  # fmt: skip
        if not checked:
            check_run(resolved)
        self.task, self.config = task, config
        self.signals = signals or StopSignals()
        self.run_dir = Path(config.output_dir)
        self.accumulation = config.accumulation or 1
        self.accelerator = launch.build_accelerator(config, task.idle_parameters)
        self.seconds = 0.0  # that the steps of the run took so far, in all its sittings
        self.resolved = resolved
        self._prepare_models()

    def _prepare_folder(self) -> None:
        # No rank may find what another one has just begun to write.
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            # Another process may have been first.
            changed = check_run_folder(self.run_dir, self.resolved, self.config.resume)
            if changed:
                tell(_told_changes(changed, self.config.steps), logging.WARNING)
            sweep_partial(self.run_dir)
            (self.run_dir / "samples").mkdir(parents=True, exist_ok=True)
            save(self.resolved, self.run_dir / "config.yaml")
        self.accelerator.wait_for_everyone()

    def _prepare_models(self) -> None:
        accelerator, config, models = self.accelerator, self.config, self.task.models
        if launch.is_sharded(accelerator):
            launch.check_shardable(models, self.task.optimizers)
        # Formats and compilation before the wrappers of several ranks, which look at the networks as they are then.
        for model in models.values():
            launch.in_memory_format(model, config.channels_last)
        if config.compile:
            launch.compile_networks(self.task.networks)
        self.unsharded = launch.unsharded_copies(accelerator, models)
        self.models, self.optimizers = launch.prepare(accelerator, models, self.task.optimizers)
        self.schedulers = {
            name: LambdaLR(optimizer, lambda step: schedule(self.config, step))
            for name, optimizer in self.task.optimizers.items()
        }
        # A helper is not evaluated, so it has no average.
        averaged = self.optimizers if config.ema else ()
        if self.unsharded is None:
            self.averages = {name: Average(models[name], config.ema) for name in averaged}
        else:
            self.averages = {name: ShardedAverage(self.models[name], config.ema) for name in averaged}
        group = launch.group_of_its_own(accelerator) if config.checkpoint_async else None
        self.run_state = RunState(self.schedulers, dict(self.averages), group)
        self.background = Background()

    def fit(self) -> Figures | None:
        """Run from the start or the newest checkpoint to `steps`; evaluate; write final/."""
        with only_writer(self.run_dir) if self.accelerator.is_main_process else nullcontext():
            self._prepare_folder()
            return self._fit()

    def _fit(self) -> Figures | None:
        config = self.config
        start_step = self._start_step()
        launch.start_trackers(self.accelerator, self.resolved, start_step)
        batches = self.task.batches(start_step, self.accelerator.process_index, self.accelerator.num_processes)
        figures = None
        main, sink = self.accelerator.is_main_process, self.accelerator.log
        watch = Watch(self.accelerator.process_index, self.accelerator.num_processes, self.run_dir, start_step)
        shown = Progress(config.steps, start_step, self.run_dir, main, sink)
        # The background inside of the watch, which ends what waits there for a rank that is gone.
        with self.signals, shown as progress, watch, self.background as background:
            for line in launch.advice(config):
                progress.say(line, logging.WARNING)
            for step in range(start_step, config.steps):
                background.check()
                done, watch.step = step + 1, step
                last = done == config.steps
                log = done % config.log_every == 0 or last or step == start_step
                began = time.perf_counter()
                figures_of_step = self.step(next(batches), step, log=log)
                self.seconds += time.perf_counter() - began
                if log:
                    progress.log(done, self._over_ranks(figures_of_step), config.batch_size)
                if done % config.evaluate_every == 0 or last:
                    background.wait()
                    if last:  # after it nothing moves on a terminal any more
                        progress.say("evaluating ...")
                    figures = self._evaluate(done)
                    progress.log_evaluation(done, figures)
                    for line in self.task.alarms(figures):
                        progress.say(line, logging.WARNING)
                # After the step and not in it, so that what is saved is a state that training has been in.
                stopping = self._anywhere(self.signals.received)
                if done % config.checkpoint_every == 0 or last or stopping:
                    self._save_checkpoint(done)
                if last or stopping:
                    background.wait()
                    self.accelerator.wait_for_everyone()  # no rank ends before it is there
                if stopping and not last:
                    progress.say(
                        f"stopped by {stopping.name} after step {done}; go on with train.resume=true", logging.ERROR
                    )
                    self.signals.received = stopping
                    launch.stop_trackers(self.accelerator)
                    return None
        if figures is None:  # resumed a run that had already ended
            progress.say("evaluating ...")
            figures = self._evaluate(config.steps)
        progress.say(f"saving {self.run_dir / 'final'} ...")
        self._save_final()
        launch.stop_trackers(self.accelerator)
        return figures

    def _save_checkpoint(self, done: int) -> None:
        save_checkpoint(
            self.accelerator, self.run_dir, done, self.config, self.seconds, self.run_state, self.background
        )

    def _start_step(self) -> int:
        set_seed(self.config.seed)  # the global generators too: whatever a library draws, it draws again
        saved = checkpoints(self.run_dir)
        if not saved:
            if self.config.resume and self.accelerator.is_main_process:
                print(f"train.resume=true, but {self.run_dir} holds no checkpoint: training begins at step 1")
            self.task.start()
            return 0
        step = load_checkpoint(self.accelerator, saved[-1], self.config, self.run_state)
        self.seconds = float(read_state(saved[-1]).get("seconds", 0.0))
        return step

    def _anywhere(self, received: signal.Signals | None) -> signal.Signals | None:
        """The signal that any rank has got: all of them stop after the same step, whichever was told."""
        if self.accelerator.num_processes == 1:
            return received
        got = torch.tensor([received or 0], device=self.accelerator.device)
        highest = int(cast(Tensor, self.accelerator.gather(got)).max())
        return signal.Signals(highest) if highest else None

    def step(self, batch: Tensor, step: int, *, log: bool = True) -> Figures:
        """One update by every optimizer from this rank's share of the global batch; where `log`, what there is to."""
        parts = batch.to(self.accelerator.device).chunk(self.accumulation)
        if self.config.channels_last and batch.ndim == 4:
            parts = [part.contiguous(memory_format=torch.channels_last) for part in parts]
        rate = float(next(iter(self.schedulers.values())).get_last_lr()[0])  # before the schedule moves on
        logged: Figures = {}
        with ExitStack() as surveyed:
            if len(parts) > 1:
                with self.accelerator.autocast():
                    surveyed.enter_context(self.task.survey(parts, step, self._first_part()))
            for name in self.optimizers:
                logged |= self._update(name, parts, step, log)
        return logged | {"learning_rate": rate}

    def _first_part(self) -> int:
        return self.accelerator.process_index * self.accumulation

    def _update(self, name: str, parts: Sequence[Tensor], step: int, log: bool) -> Figures:
        """The gradients of all parts, then one step of an optimizer."""
        optimizer = self.optimizers[name]
        self.models[name].train()
        parts_logged = [self._backward(name, part, step, i, log) for i, part in enumerate(parts)]
        if not any(parts_logged):  # nothing to do yet: a step without gradients changes nothing
            self.task.optimizers[name].step()
            self.schedulers[name].step()
            return {}
        logged = {key: sum(part[key] for part in parts_logged) / len(parts) for key in parts_logged[0]}
        # To infinity: nothing is clipped, but the norm is known.
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        norm = self.accelerator.clip_grad_norm_(self._updated_by(name), limit)
        logged[f"{name}_gradient_norm"] = self._checked_norm(name, norm, step)
        optimizer.step()
        self.schedulers[name].step()
        optimizer.zero_grad()
        if name in self.averages:
            self.averages[name].update(self.task.models[name] if self.unsharded is None else self.models[name])
        return logged

    def _backward(self, name: str, batch: Tensor, step: int, i: int, log: bool) -> Figures:
        """Add the gradients of part i of this rank's share; the terms and, where they are logged, the figures."""
        with ExitStack() as unsynced:
            if i + 1 < self.accumulation:  # ranks add up their gradients once, after the last part
                for trained in (name, *self._helpers()):
                    unsynced.enter_context(self.accelerator.no_sync(self.models[trained]))
            losses = self._losses(name, batch, step, self._first_part() + i)
            if not losses.terms:
                return {}
            numbers = self._finite(losses.terms, step)
            total = sum(losses.terms.values(), start=torch.zeros((), device=self.accelerator.device))
            self.accelerator.backward(total / self.accumulation)
        return numbers | losses.figures() if log else numbers

    def _checked_norm(self, name: str, norm: Tensor | None, step: int) -> float:
        """The norm as a number; DivergedError before a gradient that is not finite gets into the weights."""
        value = math.nan if norm is None else float(norm)
        if not math.isfinite(value) and self.accelerator.scaler is None:  # a scaler leaves such steps out by itself
            raise self._diverged(f"the gradient of {name} is {value}", step)
        return value

    def _helpers(self) -> list[str]:
        """Models without an optimizer of their own."""
        return [name for name in self.models if name not in self.optimizers]

    def _updated_by(self, name: str) -> list[nn.Parameter]:
        """Parameters of the model of an optimizer's name, and of the helpers that it updates with it."""
        held = {id(p) for group in self.task.optimizers[name].param_groups for p in group["params"]}
        helping = (p for helper in self._helpers() for p in self.models[helper].parameters() if id(p) in held)
        return [*self.models[name].parameters(), *helping]

    def _over_ranks(self, figures: Figures) -> Figures:
        """Means over ranks, each of which has seen its share of the global batch."""
        if self.accelerator.num_processes == 1:
            return figures
        values = torch.tensor(list(figures.values()), device=self.accelerator.device)
        means = cast(Tensor, self.accelerator.reduce(values, "mean"))
        return dict(zip(figures, means.tolist(), strict=True))

    def _losses(self, name: str, batch: Tensor, step: int, part: int) -> Losses:
        try:
            with self.accelerator.autocast():
                return self.task.losses(name, self.models, batch, step, part)
        except NotFiniteError as error:  # the lookup refuses what is not finite
            raise self._diverged(str(error), step) from None

    def _finite(self, terms: dict[str, Tensor], step: int) -> Figures:
        """The terms as numbers; raises DivergedError with the step, the term and the last good checkpoint."""
        # Read in one go: every read waits for the device.
        values = torch.stack([value.detach().float() for value in terms.values()]).tolist()
        for key, value in zip(terms, values, strict=True):
            if not math.isfinite(value):
                raise self._diverged(f"loss term {key!r} is {value}", step)
        return dict(zip(terms, values, strict=True))

    def _diverged(self, what: str, step: int) -> DivergedError:
        saved = checkpoints(self.run_dir)
        good = saved[-1] if saved else "none yet"
        return DivergedError(f"{what} at step {step + 1}; last good checkpoint: {good}; lower the learning rate")

    def evaluated_models(self) -> dict[str, nn.Module]:
        """The moving averages where there are any, else the models themselves, unwrapped; all ranks call it together.

        Of sharded models unsharded copies, on the main process alone.
        """
        if self.unsharded is not None:
            with ExitStack() as swapped:
                for name, average in self.averages.items():
                    if isinstance(average, ShardedAverage):
                        swapped.enter_context(average.in_place(self.models[name]))
                launch.gather(self.accelerator, self.models, self.unsharded)
            return self.unsharded
        whole = {name: average.module for name, average in self.averages.items() if isinstance(average, Average)}
        return self.task.models | whole

    def _evaluate(self, step: int) -> Figures:
        models = self.evaluated_models()
        if not self.accelerator.is_main_process:
            return {}
        # Evaluations have batches and lengths of their own, each of which would be compiled for a few calls.
        with torch.compiler.set_stance("force_eager"):
            return self.task.evaluate(models, self.run_dir, step)

    def _save_final(self) -> None:
        models = self.evaluated_models()
        if self.accelerator.is_main_process:
            self.task.save(models, self.run_dir / "final")
        self.accelerator.wait_for_everyone()  # it is there when any rank goes on


def _told_changes(changed: list[str], steps: int) -> str:
    """changed: settings, as `check_run_folder` returns them."""
    length = (
        f"; the learning rate falls until step {steps} now" if any("train.steps:" in line for line in changed) else ""
    )
    return f"the run goes on with other settings than before: {', '.join(changed)}{length}"


def training_seconds(run_dir: str | Path, batch_size: int) -> float:
    """Seconds that the steps of a run took over all its sittings; evaluations and checkpoints are not counted.

    Of runs whose checkpoints are gone or do not tell, an estimate from the logged speeds.
    """
    saved = checkpoints(Path(run_dir))
    if saved and "seconds" in (state := read_state(saved[-1])):
        return float(state["seconds"])
    lines = [line for line in read_metrics(run_dir) if line["kind"] == "train"]
    return sum((b["step"] - a["step"]) * batch_size / b["images_per_second"] for a, b in pairwise(lines))


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, one dict each; raises InputError for one that is damaged."""
    path = Path(run_dir) / "metrics.jsonl"
    try:
        return [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{path}: the file is damaged ({error})") from None

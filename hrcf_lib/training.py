r"""Alternate training (Sec. III-F, Eqs. 20-21): in each of a list of phases one side learns, the other is fixed.

$$\text{image side:}\quad \min\; L_{rank}(S, y) + \alpha\, L_{kd}(e_g, e_p) \qquad
  \text{prompts:}\quad \min\; L_{rank}(S, y)$$

A phase may also train ``both`` at once, by the image side's loss and curve, for comparison with alternating.

``Method.trainable`` lists the parameters that a phase trains. Each side has one optimiser, whose state is kept from
phase to phase, and one learning-rate curve over the sum of its epochs. A checkpoint is renamed into place every
``save_every`` steps; an interrupted run continues from it to the same weights as an unbroken one.
"""

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from tqdm.auto import tqdm

from hrcf_lib.config import SIDES, Config, names_where, values_before
from hrcf_lib.data.feeds.embeddings import fix_image_side
from hrcf_lib.data.feeds.feed import Feed, check_feed
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.engine import files, weights
from hrcf_lib.engine.devices import process
from hrcf_lib.engine.messages import check_known, user_path, whole_number
from hrcf_lib.labels import LabelSpace


def only(model, side: str) -> None:
    """Switch gradients on for the parameters of one side and off for all others."""
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith(model.trainable[side]))


def train(model, data: Feed, folder: str | Path | None = None, save_every: int = 200, stop_after=None) -> pd.DataFrame:
    r"""Run the phases of ``model.config`` on ``data``; of the annotation, only the seen columns are read.

    Args:
        model: an ``HRCF`` or another ``Method``. It is moved to the device that Accelerate gives this process, and left
            in evaluation mode with its gradients as before, however the run ends.
        data: a ``Feed``: ``FrozenFeatures``, or ``Pictures`` or ``StreamedPictures`` augmented as the config says.
        folder: of the checkpoint, with which a run can be interrupted and resumed. Several machines have to share it;
            one run at a time writes to it.
        save_every: steps between checkpoints.
        stop_after: number of steps after which this call ends, as if interrupted.

    Returns one row per step: step, phase, side, epoch (within the side), lr, the parts of the loss by name (of HRCF
    ranking and distillation), seconds (since the start of this call), waited (seconds of them in which this process had
    no batch to work on). Pictures that are not ``usable``, by default those without a positive seen label, are dropped
    inside the batch; if no picture of a batch is left, the step is skipped and its losses are NaN.

    Started by ``accelerate launch`` or ``notebook_launcher``, every process runs this and computes its share of each
    batch; a phase's batch is that of all processes together, and losses are sums over the kept pictures of all
    processes divided by their number: losses and weights do not depend on how many processes there are, nor on
    ``config.accumulate``, up to rounding (except batch norm, as in BiAM and LESA, OVML-VLP's contrastive loss and
    LESA's loss of diversity, which look at the pictures of one process and part, and what is drawn at random: dropout,
    and Gen-MLZSL's noise). A run may be resumed by another number of processes.

    Raises ``TypeError`` for what is no method or no feed, ``ValueError`` for odd numbers or folders, if a checkpoint is
    damaged or belongs to another method, config or data, if features or labels hold NaN, are not what config and method
    ask for, or show no positive seen label, and for a method whose ``trainable`` names none of its parameters, or whose
    ``losses`` and ``weights`` differ in names; ``FloatingPointError`` if the loss is not finite; ``files.InUse`` if
    another run writes to the folder; ``OSError`` where it cannot be written.
    """
    check_feed(model, data)
    save_every = whole_number("save_every", save_every)
    stop_after = None if stop_after is None else whole_number("stop_after", stop_after, 0)
    folder = None if folder is None else user_path(folder, "the folder of the run")
    if model.config.augment != data.augment:
        raise ValueError(
            f"augment = {model.config.augment!r} of the config needs other pictures than {type(data).__name__} with "
            f"augment {data.augment!r}: make Pictures(dataset, model.vlp, config.augment), or set augment to 'none'"
        )
    if not data.has_positives():
        raise ValueError(
            "no picture has a positive seen label, so there is nothing to learn: check labels and LabelSpace"
        )
    learnt, writes = [p for p in model.parameters() if p.requires_grad], process().is_main_process and folder
    try:
        with files.alone(folder) if writes else nullcontext():
            return _run(model, data, folder, save_every, stop_after)
    finally:
        for p in model.parameters():
            p.requires_grad_(False).grad = None
        for p in learnt:
            p.requires_grad_(True)
        model.eval()


def _run(model, data, folder, save_every, stop_after) -> pd.DataFrame:
    idle = DistributedDataParallelKwargs(find_unused_parameters=model.idle_parameters)
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[idle])  # config.bf16 is part of the experiment
    config, start = model.to(accelerator.device).config, time.time()
    asked = {p.trains for p in config.phases}
    check_known(asked, list(model.trainable), f"{model.title} has no side that phases call")
    _check_trainable(model)
    sides = [s for s in SIDES if s in asked and model.groups(s)]
    optimizers = {s: model.optimizer(model.groups(s)) for s in sides}
    phases = [p for p in config.phases if p.trains in sides]  # a fixed prompt has nothing to learn
    total = {s: sum(p.epochs for p in phases if p.trains == s) for s in sides}
    plan = [(i, p, e) for i, p in enumerate(phases) for e in range(p.epochs)]
    steps = sum(BatchOrder(p.batch).steps(len(data)) for _, p, _ in plan)
    checkpoint, about, history, done = None, None, [], 0
    if folder:
        checkpoint, about = Path(folder) / "checkpoint.pt", _about(model, data)
        if checkpoint.exists():
            history, done = _restore(checkpoint, about, model, optimizers)
        _agree(accelerator, done, checkpoint)
    model.reference_labels = data.space.seen  # a run that is refused leaves the model as it was
    last = steps if stop_after is None else min(steps, done + stop_after)
    if last and not done:
        model.begin(data)
    model.train()
    step, wrapped, main = 0, None, accelerator.is_main_process
    with tqdm(total=steps, initial=done, desc="training", disable=None if main else True, leave=False) as progress:
        for i, phase, e in plan:
            side = phase.trains
            before = sum(p.epochs for p in phases[:i] if p.trains == side) + e  # epochs this side has had
            n = BatchOrder(phase.batch).steps(len(data))
            first = min(max(done - step, 0), n)  # steps of this epoch that were done before
            step += first
            if first == n:
                continue
            if step >= last:
                break
            if i != wrapped:  # a new phase
                wrapped, objective, source = i, None, None
                if accelerator.num_processes > 1 or accelerator.device.type != "cpu":
                    accelerator.free_memory()  # of the phase before; on a CPU it would only collect garbage, 0.3 s
                only(model, side)
                t = None if learns_text(model, side) else _label_embeddings(model, data)
                objective = accelerator.prepare_model(Objective(model, side, data.space.seen, t))
                source = data if learns_images(model, side) else fix_image_side(model, data, phase.epochs - e)
            seed = _seed(config.seed, side, before)
            order = BatchOrder(phase.batch, seed, first, accelerator.process_index, accelerator.num_processes)
            for b, (batch, waited) in enumerate(_clocked(source.batches(order)), first):
                step += 1
                epoch = before + b / n
                lr = model.learning_rate(side, epoch, total[side])
                for group in optimizers[side].param_groups:
                    group["lr"] = lr * group["lr_scale"]
                model.before_step(step)
                with _dice(config.seed, step, accelerator):
                    losses = _step(objective, model, source, batch, optimizers[side], accelerator)
                history.append((step, i, side, epoch, lr, *losses, time.time() - start, waited))
                progress.update()
                if checkpoint and main and (step % save_every == 0 or step == last):
                    _save(checkpoint, about, model, optimizers, history, step)
                if step >= last:
                    break
    accelerator.wait_for_everyone()
    return history_frame(history, model)


def _check_trainable(model) -> None:
    """Raise ``ValueError`` if a method has parameters of its own and no side trains any of them."""
    names = [name for name, _ in model.named_parameters() if not name.startswith("vlp.")]
    if names and not any(model.groups(side) for side in model.trainable):
        raise ValueError(
            f"{model.title} has parameters such as {names[0]!r}, and its trainable names none of them "
            f"({dict(model.trainable)}): give prefixes of their names"
        )


def _clocked(batches: Iterable) -> Iterator[tuple]:
    """Batches, each with the seconds that this process waited for it."""
    start = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - start
        start = time.perf_counter()


def _seed(seed: int, side: str, epoch: int) -> int:
    """Seed of the order of pictures in an epoch of a side; what the other side does in between does not change it."""
    return seed * 1_000_003 + SIDES.index(side) * 100_003 + epoch


@contextmanager
def _dice(seed: int, step: int, accelerator):
    """Random draws of a step (dropout) depend on seed, step and process alone: a resumed run draws the same."""
    device = accelerator.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + step) * 1_009 + accelerator.process_index)
        yield


def learns_text(model, side: str) -> bool:
    """Whether label embeddings change while ``side`` learns."""
    return any(part.startswith(model.text_prefixes) for part in model.trainable[side])


def learns_images(model, side: str) -> bool:
    """Whether the image side changes while ``side`` learns."""
    return any(not part.startswith(model.text_prefixes) for part in model.trainable[side])


def _label_embeddings(model, data) -> Tensor:
    with torch.no_grad():
        return model.label_embeddings(data.space.seen)


class Objective(torch.nn.Module):
    """The loss of one side on a part of a batch. Every process holds a replica."""

    def __init__(self, model, side: str, names, label_embeddings: Tensor | None):
        super().__init__()
        self.model, self.side, self.names, self.t = model, side, names, label_embeddings

    def forward(self, images, teacher, labels, n: int) -> tuple[Tensor, ...]:
        """Images, (b, D), (b, K), pictures kept in the whole batch -> loss, and the share of each of its parts.

        Images are trunk tokens (b, 1 + N^2, C), or (e_g, regions) where the image side is fixed. Raises
        ``FloatingPointError`` if scores or loss are not finite.
        """
        model, weight = self.model, self.model.weights(self.side)
        if not len(labels):  # nothing left for this process, which still takes part in the exchange of gradients
            nothing = sum((p * 0).sum() for p in model.parameters() if p.requires_grad)
            return nothing, *(nothing.detach() for _ in weight)
        if isinstance(images, Tensor):
            with model.autocast(), torch.set_grad_enabled(learns_images(model, self.side)):
                images = model.image_embeddings(images)
        e_g, regions = (x.float() for x in images)
        t = model.label_embeddings(self.names) if self.t is None else self.t  # (K, D)
        parts = model.losses(e_g, regions, t, labels, teacher)
        if parts.keys() != weight.keys():
            raise ValueError(
                f"losses of {model.title} gives {', '.join(parts)}, its weights names {', '.join(weight)}: "
                "give both the same names"
            )
        summed = model.summed()  # the others are means over pictures
        parts = {name: parts[name] * (1.0 if name in summed else len(labels) / n) for name in weight}
        loss = sum(w * parts[name] for name, w in weight.items() if w)  # Eq. 20 | Eq. 21
        if not loss.isfinite():
            raise FloatingPointError("the loss is NaN or infinite: look at the features, or lower the learning rate")
        return loss, *(part.detach() for part in parts.values())


def _step(objective, model, data, batch, optimizer, accelerator) -> list[float]:
    """One update; returns the parts of the loss. Labels are cut to the seen columns before anything reads them."""
    config, device = model.config, accelerator.device
    rows, inputs, labels = batch
    labels = labels[:, data.space.columns("seen")]
    _check_labels(labels, rows)
    kept = model.usable(labels).nonzero()[:, 0]  # the others are dropped
    n = int(accelerator.reduce(torch.tensor(len(kept), device=device)))
    names = _parts(model)
    if not n:
        return [math.nan] * len(names)
    optimizer.zero_grad(set_to_none=True)
    losses = torch.zeros(len(names), device=device)
    parts = kept.tensor_split(config.accumulate)
    for i, part in enumerate(parts):
        exchange = nullcontext() if i + 1 == len(parts) else accelerator.no_sync(objective)
        with exchange:
            y = labels[part].to(device)
            whole = len(part) == len(labels)
            kept_inputs = inputs if whole else [x[part] for x in inputs]  # a whole batch stays in pinned memory
            frozen = data.frozen(model.vlp, kept_inputs, config.bf16) if len(part) else (None, None)
            try:
                loss, *shares = objective(*frozen, y, n)
            except FloatingPointError:
                _blame(*frozen, [rows[k] for k in part.tolist()], config)
            accelerator.backward(loss * accelerator.num_processes)  # Accelerate takes the mean over processes
        losses += torch.stack(shares)
    optimizer.step()
    return accelerator.reduce(losses).tolist()


def _check_labels(labels: Tensor, rows) -> None:
    """Also of pictures that are dropped: one whose labels are NaN would show nothing, and go unseen."""
    odd = (labels.abs() != 1) & (labels != 0)
    if odd.any():
        i, k = odd.nonzero()[0].tolist()
        row = rows[i].item() if isinstance(rows[i], Tensor) else rows[i]
        raise ValueError(f"label {k} of picture {row} is {labels[i, k].item()}: labels are -1, 0 or +1")


def _blame(images, teacher: Tensor, rows: list, config: Config) -> None:
    """Raise ``ValueError`` naming pictures with broken features, or ``FloatingPointError``: training has diverged."""
    images = images[1] if isinstance(images, tuple) else images  # (b, J, D) or (b, 1 + N^2, C)
    finite = images.flatten(1).isfinite().all(dim=1) & teacher.isfinite().all(dim=1)
    broken = [row.item() if isinstance(row, Tensor) else row for row, fine in zip(rows, finite.tolist()) if not fine]
    if broken:
        raise ValueError(
            f"NaN or infinite features of pictures {broken[:5]}: look at them, then extract features again"
        ) from None
    fix = f"lower lr ({config.lr:g}) or prompt_lr ({config.prompt_lr:g})"
    raise FloatingPointError(f"training has diverged: {fix}") from None


def _agree(accelerator, done: int, checkpoint: Path) -> None:
    """Raise ``ValueError`` if processes resume from different steps, as they do where each has a disk of its own."""
    steps = accelerator.gather(torch.tensor([done], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise ValueError(
            f"processes found different checkpoints at {checkpoint} (steps {steps}): put the folder on a file system "
            "that all machines share, or remove it everywhere"
        )


def _about(model, data) -> dict:
    """What a checkpoint belongs to: config, VLP, pictures and seen annotation; plain values."""
    about = {"method": model.config.method, "VLP": model.vlp.hash}
    about |= {"seen labels": LabelSpace(data.space.seen).hash} | data.identity()
    return about | {n: repr(getattr(model.config, n)) for n in names_where(type(model.config), weights=True)}


def _save(path: Path, about: dict, model, optimizers, history, step: int) -> None:
    state = {"about": about, "step": step, "history": history, "model": model.trainable_state()}
    state["optimizers"] = {side: o.state_dict() for side, o in optimizers.items()}
    weights.save_checkpoint(state, path)


def _restore(path: Path, about: dict, model, optimizers) -> tuple[list, int]:
    parts = ("about", "step", "history", "model", "optimizers")
    state = weights.read_checkpoint(path, parts, model.vlp.mean.device)
    known = {f.name: f.default for f in dataclasses.fields(model.config)} | values_before(type(model.config))
    # what a field means that is younger than the checkpoint
    known = {name: repr(value) for name, value in known.items() if value is not dataclasses.MISSING}
    known["method"] = about["method"]  # which older checkpoints do not say
    saved = {n: known[n] for n in about if n in known} | state["about"]
    free = names_where(type(model.config), weights=False)  # a run may be resumed with others
    names = [n for n in about | saved if n not in free]
    differ = [f"{n}: there {saved.get(n)}, here {about.get(n)}" for n in names if saved.get(n) != about.get(n)]
    if differ:
        fix = "remove it or choose another folder"
        raise ValueError("\n  ".join([f"{path} belongs to another run; {fix}. They differ in", *differ]))
    model.load_trainable(state["model"], path)
    for side, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][side])
    return [tuple(row) for row in state["history"]], state["step"]


def _parts(model) -> list[str]:
    """Names of the parts of the loss; they are the same for all sides."""
    return list(model.weights("images"))


def history_frame(history, model) -> pd.DataFrame:
    """One row per step, in the columns that ``train`` describes."""
    columns = ["step", "phase", "side", "epoch", "lr", *_parts(model), "seconds", "waited"]
    return pd.DataFrame(history, columns=columns)

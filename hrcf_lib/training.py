r"""Alternate training (Sec. III-E, Eqs. 20-21): a list of phases, in each of which one side learns and the other rests.

$$\text{image side:}\quad \min\; L_{rank}(S, y) + \alpha\, L_{kd}(e_g, e_p) \qquad
  \text{prompts:}\quad \min\; L_{rank}(S, y)$$

Which parameters a phase trains is data (``config.TRAINABLE``). Each side has one optimiser whose state lives on across
its phases, and one learning-rate curve over the sum of its epochs. A checkpoint is renamed into place every
``save_every`` steps; an interrupted run goes on from it to the same weights as an unbroken one.
"""

import math
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hrcf_lib.config import TRAINABLE, Config
from hrcf_lib.features import FrozenFeatures
from hrcf_lib.losses import distillation_loss, ranking_loss


def parameter_groups(model, side: str, config: Config) -> list[dict]:
    """AdamW groups of one side: no decay on 1-D parameters; the ViT block learns at ``lr * layer_decay``."""
    groups = {}
    for name, p in model.named_parameters():
        if name.startswith(TRAINABLE[side]):
            scale = config.layer_decay if name.startswith("block.") else 1.0
            decay = config.weight_decay if p.ndim > 1 else 0.0
            groups.setdefault((scale, decay), []).append(p)
    return [{"params": ps, "lr_scale": scale, "weight_decay": decay} for (scale, decay), ps in groups.items()]


def learning_rate(epoch: float, epochs: int, lr: float, min_lr: float, warmup: float) -> float:
    """At a fractional ``epoch``: linear from 0 over ``warmup`` epochs, then a cosine to ``min_lr`` (MKT's schedule)."""
    if epoch < warmup:
        return lr * epoch / warmup
    progress = (epoch - warmup) / max(epochs - warmup, 1e-12)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def only(model, side: str) -> None:
    """Switch gradients on for the parameters of one side and off for all others."""
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith(TRAINABLE[side]))


def train(
    model, features: FrozenFeatures, folder: str | Path | None = None, save_every: int = 200, stop_after=None
) -> pd.DataFrame:
    r"""Run the phases of ``model.config`` on ``features`` (annotation of seen labels; unseen columns are not looked at).

    Returns one row a step: step, phase, side, epoch (within the side), lr, ranking, distillation, seconds. Pictures
    without a positive seen label are dropped inside the batch. With ``folder`` the run can be interrupted and resumed;
    ``stop_after`` ends it after that many steps of this call, as an interruption would. Raises ``FloatingPointError`` if
    the loss is not finite, ``ValueError`` if a checkpoint belongs to another config or data.
    """
    config, start = model.config, time.time()
    model.reference_labels = features.space.seen
    seen = features.space.columns("seen")
    device = model.vlp.mean.device
    sides = [s for s in TRAINABLE if any(n.startswith(TRAINABLE[s]) for n, _ in model.named_parameters())]
    optimizers = {s: torch.optim.AdamW(parameter_groups(model, s, config), lr=config.lr) for s in sides}
    total = {s: sum(p.epochs for p in config.phases if p.trains == s) for s in sides}
    phases = [p for p in config.phases if p.trains in sides]  # a fixed prompt has nothing to learn
    plan = [(i, p, e) for i, p in enumerate(phases) for e in range(p.epochs)]
    history, done = [], 0
    checkpoint = Path(folder) / "checkpoint.pt" if folder else None
    about = repr((config, len(features), features.space.hash))
    if checkpoint and checkpoint.exists():
        history, done = _restore(checkpoint, about, model, optimizers)
    steps = sum(math.ceil(len(features) / p.batch) for _, p, _ in plan)
    progress, step = tqdm(total=steps, initial=done, desc="training", disable=None, leave=False), 0
    model.train()
    for i, phase, e in plan:
        side = phase.trains
        before = sum(p.epochs for p in phases[:i] if p.trains == side) + e  # epochs this side has had
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + i * 1009 + e)
        batches = torch.randperm(len(features), generator=rng).split(phase.batch)
        if step + len(batches) <= done:
            step += len(batches)
            continue
        only(model, side)
        t = None if side == "prompts" else _label_embeddings(model, features)  # fixed while the image side learns
        for b, rows in enumerate(batches):
            step += 1
            if step <= done:
                continue
            epoch = before + b / len(batches)
            base, warmup = (config.lr, config.warmup_epochs) if side == "hcg" else (config.prompt_lr, 0.0)
            lr = learning_rate(epoch, total[side], base, config.min_lr, warmup)
            for group in optimizers[side].param_groups:
                group["lr"] = lr * group["lr_scale"]
            rank, kd = _step(model, features.batch(rows, device), seen, side, t, features, optimizers[side])
            history.append((step, i, side, epoch, lr, rank, kd, time.time() - start))
            progress.update()
            stop = stop_after is not None and len(history) and step - done >= stop_after
            if checkpoint and (step % save_every == 0 or step == steps or stop):
                _save(checkpoint, about, model, optimizers, history, step)
            if stop:
                return _frame(history)
    progress.close()
    only(model, "hcg")  # leave the model as it was built: every side can learn, the VLP cannot
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith("vlp."))
    model.eval()
    return _frame(history)


def _label_embeddings(model, features) -> Tensor:
    with torch.no_grad():
        return model.label_embeddings(features.space.seen)


def _step(model, batch, seen, side, t, features, optimizer) -> tuple[float, float]:
    """One update; returns both losses. Labels are cut to the seen columns before anything looks at them."""
    config = model.config
    trunk, teacher, labels = batch
    labels = labels[:, seen]
    kept = (labels == 1).any(dim=1)  # pictures without a positive seen label are dropped (MKT)
    if not kept.any():
        return math.nan, math.nan
    trunk, teacher, labels = trunk[kept], teacher[kept], labels[kept]
    with (
        torch.autocast(trunk.device.type, dtype=torch.bfloat16, enabled=config.bf16),
        torch.set_grad_enabled(side == "hcg"),
    ):
        e_g, regions = model.image_embeddings(trunk)
    if t is None:
        t = model.label_embeddings(features.space.seen)
    e_g, regions = e_g.float(), regions.float()
    rank = ranking_loss(model.score(e_g, regions, t), labels, config.ranking_reduction)  # Eq. 15
    kd = distillation_loss(e_g, teacher, config.distillation_reduction)  # Eq. 5
    loss = rank + config.distillation * kd if side == "hcg" else rank  # Eq. 20 | Eq. 21
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {float(loss)}: lower lr ({config.lr}) or check the features for NaN")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(rank), float(kd)


def _save(path: Path, about: str, model, optimizers, history, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"about": about, "step": step, "history": history, "model": model.trainable_state()}
    state["optimizers"] = {side: o.state_dict() for side, o in optimizers.items()}
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def _restore(path: Path, about: str, model, optimizers) -> tuple[list, int]:
    state = torch.load(path, weights_only=True)
    if state["about"] != about:
        raise ValueError(
            f"{path} belongs to another run:\n  there {state['about']}\n  here  {about}\nremove it or choose another folder"
        )
    model.load_trainable(state["model"], path)
    for side, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][side])
    return [tuple(row) for row in state["history"]], state["step"]


def _frame(history) -> pd.DataFrame:
    return pd.DataFrame(history, columns=["step", "phase", "side", "epoch", "lr", "ranking", "distillation", "seconds"])

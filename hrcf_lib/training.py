r"""Alternate training (Sec. III-E, Eqs. 20-21): a list of phases, in each of which one side learns and the other rests.

$$\text{image side:}\quad \min\; L_{rank}(S, y) + \alpha\, L_{kd}(e_g, e_p) \qquad
  \text{prompts:}\quad \min\; L_{rank}(S, y)$$

Which parameters a phase trains is data (``config.TRAINABLE``). Each side has one optimiser whose state lives on across
its phases, and one learning-rate curve over the sum of its epochs. A checkpoint is renamed into place every
``save_every`` steps; an interrupted run goes on from it to the same weights as an unbroken one.
"""

import hashlib
import math
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hrcf_lib import weights
from hrcf_lib.config import TRAINABLE, Config
from hrcf_lib.features import FrozenFeatures
from hrcf_lib.labels import LabelSpace
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
    turn = math.pi * (epoch - warmup) / max(epochs - warmup, 1e-12)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(min(turn, math.pi)))


def only(model, side: str) -> None:
    """Switch gradients on for the parameters of one side and off for all others."""
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith(TRAINABLE[side]))


def train(
    model, features: FrozenFeatures, folder: str | Path | None = None, save_every: int = 200, stop_after=None
) -> pd.DataFrame:
    r"""Run the phases of ``model.config`` on ``features``; of the annotation only the seen columns are looked at.

    Returns one row a step: step, phase, side, epoch (within the side), lr, ranking, distillation, seconds. Pictures
    without a positive seen label are dropped inside the batch (a batch that loses all of them makes no step and shows
    NaN). With ``folder`` the run can be interrupted and resumed; ``stop_after`` ends it after that many steps of this
    call, as an interruption would. However it ends, the model is left in evaluation mode with its gradients as before.

    Raises ``ValueError`` if a checkpoint belongs to another config or data, if the features hold NaN, are not what the
    config asks for, or show no positive seen label; ``FloatingPointError`` if the loss is not finite.
    """
    config = model.config
    if config.augment != "none":
        raise ValueError(
            f"augment = {config.augment!r} needs pictures, these are frozen features: set augment to 'none'"
        )
    if not (features.labels[:, features.space.columns("seen")] == 1).any():
        raise ValueError(
            "no picture has a positive seen label, so there is nothing to learn: check labels and LabelSpace"
        )
    model.reference_labels = features.space.seen
    learnt = [p for p in model.parameters() if p.requires_grad]
    try:
        return _run(model, features, folder, save_every, stop_after)
    finally:
        for p in model.parameters():
            p.requires_grad_(False).grad = None
        for p in learnt:
            p.requires_grad_(True)
        model.eval()


def _run(model, features, folder, save_every, stop_after) -> pd.DataFrame:
    config, start, device = model.config, time.time(), model.vlp.mean.device
    sides = [s for s in TRAINABLE if any(n.startswith(TRAINABLE[s]) for n, _ in model.named_parameters())]
    optimizers = {s: torch.optim.AdamW(parameter_groups(model, s, config), lr=config.lr) for s in sides}
    phases = [p for p in config.phases if p.trains in sides]  # a fixed prompt has nothing to learn
    total = {s: sum(p.epochs for p in phases if p.trains == s) for s in sides}
    plan = [(i, p, e) for i, p in enumerate(phases) for e in range(p.epochs)]
    steps = sum(math.ceil(len(features) / p.batch) for _, p, _ in plan)
    checkpoint, about, history, done = None, None, [], 0
    if folder:
        checkpoint, about = Path(folder) / "checkpoint.pt", _about(model, features)
        if checkpoint.exists():
            history, done = _restore(checkpoint, about, model, optimizers)
    last = steps if stop_after is None else min(steps, done + stop_after)
    model.train()
    step = 0
    with tqdm(total=steps, initial=done, desc="training", disable=None, leave=False) as progress:
        for i, phase, e in plan:
            side = phase.trains
            before = sum(p.epochs for p in phases[:i] if p.trains == side) + e  # epochs this side has had
            batches = _batches(len(features), phase.batch, config.seed, side, before)
            if step + len(batches) <= done:
                step += len(batches)
                continue
            only(model, side)
            t = None if side == "prompts" else _label_embeddings(model, features)  # fixed while the image side learns
            base, warmup = (config.lr, config.warmup_epochs) if side == "hcg" else (config.prompt_lr, 0.0)
            for b, rows in enumerate(batches):
                if step >= last:
                    return _frame(history)
                step += 1
                if step <= done:
                    continue
                epoch = before + b / len(batches)
                lr = learning_rate(epoch, total[side], base, config.min_lr, warmup)
                for group in optimizers[side].param_groups:
                    group["lr"] = lr * group["lr_scale"]
                rank, kd = _step(model, features, rows, t, side, optimizers[side], device)
                history.append((step, i, side, epoch, lr, rank, kd, time.time() - start))
                progress.update()
                if checkpoint and (step % save_every == 0 or step == last):
                    _save(checkpoint, about, model, optimizers, history, step)
    return _frame(history)


def _batches(n: int, batch: int, seed: int, side: str, epoch: int) -> tuple[Tensor, ...]:
    """A side's order of pictures in its given epoch: it does not depend on what the other side does in between."""
    rng = torch.Generator().manual_seed(seed * 1_000_003 + list(TRAINABLE).index(side) * 100_003 + epoch)
    return torch.randperm(n, generator=rng).split(batch)


def _label_embeddings(model, features) -> Tensor:
    with torch.no_grad():
        return model.label_embeddings(features.space.seen)


def _step(model, features, rows, t, side, optimizer, device) -> tuple[float, float]:
    """One update; returns both losses. Labels are cut to the seen columns before anything looks at them."""
    config = model.config
    trunk, teacher, labels = features.batch(rows, device)
    labels = labels[:, features.space.columns("seen")]
    kept = (labels == 1).any(dim=1)  # pictures without a positive seen label are dropped (MKT)
    if not kept.any():
        return math.nan, math.nan
    trunk, teacher, labels = trunk[kept], teacher[kept], labels[kept]
    with (
        torch.autocast(trunk.device.type, dtype=torch.bfloat16, enabled=config.bf16),
        torch.set_grad_enabled(side == "hcg"),
    ):
        e_g, regions = model.image_embeddings(trunk)
    e_g, regions = e_g.float(), regions.float()
    s = model.score(e_g, regions, model.label_embeddings(features.space.seen) if t is None else t)  # (B, K)
    if not s.isfinite().all():
        _blame(trunk, rows[kept.cpu()], config)
    rank = ranking_loss(s, labels, config.ranking_reduction)  # Eq. 15
    kd = distillation_loss(e_g, teacher, config.distillation_reduction)  # Eq. 5
    loss = rank + config.distillation * kd if side == "hcg" else rank  # Eq. 20 | Eq. 21
    if not loss.isfinite():
        _blame(teacher, rows[kept.cpu()], config)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return rank.item(), kd.item()


def _blame(values: Tensor, rows: Tensor, config: Config) -> None:
    """Raise: either the features are broken, and the message names the pictures, or training has diverged."""
    broken = rows[~values.flatten(1).isfinite().all(dim=1).cpu()].tolist()
    if broken:
        raise ValueError(
            f"NaN or infinite features of pictures {broken[:5]}: look at them, then extract features again"
        )
    raise FloatingPointError(f"training has diverged: lower lr ({config.lr:g}) or prompt_lr ({config.prompt_lr:g})")


def _about(model, features) -> dict:
    """What a checkpoint belongs to: config, VLP, pictures and seen annotation; plain values."""
    labels = features.labels[:, features.space.columns("seen")].to("cpu", torch.int8).contiguous().numpy()
    about = {"VLP": model.vlp.hash, "pictures": len(features), "labels": hashlib.sha256(labels).hexdigest()[:16]}
    about["features"] = hashlib.sha256(features.teacher.cpu().contiguous().numpy()).hexdigest()[:16]
    return (
        about
        | {"seen labels": LabelSpace(features.space.seen).hash}
        | {n: repr(v) for n, v in vars(model.config).items()}
    )


def _save(path: Path, about: dict, model, optimizers, history, step: int) -> None:
    state = {"about": about, "step": step, "history": history, "model": model.trainable_state()}
    state["optimizers"] = {side: o.state_dict() for side, o in optimizers.items()}
    weights.save_checkpoint(state, path)


def _restore(path: Path, about: dict, model, optimizers) -> tuple[list, int]:
    state = torch.load(path, map_location=model.vlp.mean.device, weights_only=True)
    there = state["about"]
    differ = [f"{n}: there {there.get(n)}, here {about.get(n)}" for n in about | there if there.get(n) != about.get(n)]
    if differ:
        mend = "remove it or choose another folder"
        raise ValueError("\n  ".join([f"{path} belongs to another run; {mend}. They differ in", *differ]))
    model.load_trainable(state["model"], path)
    for side, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][side])
    return [tuple(row) for row in state["history"]], state["step"]


def _frame(history) -> pd.DataFrame:
    return pd.DataFrame(history, columns=["step", "phase", "side", "epoch", "lr", "ranking", "distillation", "seconds"])

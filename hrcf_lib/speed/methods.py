"""What each method costs, all of them in turn in one run: parameters, steps of training, pictures scored."""

import statistics

import pandas as pd
import torch

from hrcf_lib import config as configs
from hrcf_lib.data.feeds.features import FrozenFeatures
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.engine import devices
from hrcf_lib.labels import LabelSpace
from hrcf_lib.methods import registry
from hrcf_lib.speed.measure import draw, draw_images, seconds
from hrcf_lib.training import train

NAMES = ("hrcf", *registry.names("compared"))


def costs(methods: dict, labels, rounds: int = 3, steps: int = 6, pictures: int = 64) -> pd.DataFrame:
    r"""A row a method: trained parameters, the time of a training as its config has it, and of scoring.

    Rounds go through all methods in turn, so that whatever else the machine does falls on all of them; each number is
    the median over rounds. A step is a whole one, with reading features, all losses and the optimizer; features are
    stored ones also where the config augments.

    Args:
        methods: title -> config.
        labels: names that pictures are scored with, and whose first four fifths training knows.
        rounds: how often each method is timed.
        steps: of training, of each side, a round; the first of them is not counted.
        pictures: that are scored at a time, from pixels.

    Returns ``method``, ``image side`` and ``text side`` (numbers that learn), ``step of images, ms`` and
    ``step of prompts, ms`` (NaN for a side without training), ``training_seconds`` and ``ms_per_picture``.
    """
    models = {title: registry.for_config(config).to(devices.best()) for title, config in methods.items()}
    times = {title: {"images": [], "prompts": [], "scores": []} for title in methods}
    for _ in range(rounds):
        for title, model in models.items():
            for side, took in _steps(model, labels, steps).items():
                times[title][side].append(took)
            model.score(draw_images(4, model.vlp.side), labels)
            took, _ = seconds(lambda m=model: m.score(draw_images(pictures, m.vlp.side), labels))
            times[title]["scores"].append(took / pictures)
    return pd.DataFrame([_row(title, models[title], times[title]) for title in methods])


def _steps(model, labels, steps: int) -> dict[str, float]:
    """Seconds of a step of each side: the median of all but the first."""
    config, found = model.config, {}
    for phase in {p.trains: p for p in config.phases}.values():
        if not model.groups(phase.trains):
            continue
        data = _noise(model, labels, phase.batch * (steps + 1))
        still = {"warmup_epochs": 0.0, "lr": 1e-12, "prompt_lr": 1e-12, "min_lr": 0.0}  # weights stay as they are
        stored = {"augment": "none", "views": 0, "stream": False}
        short = model.under(config.replace(phases=[(phase.trains, 1, phase.batch)], **stored, **still))
        took = train(short, data)["seconds"].diff().iloc[1:]
        found["prompts" if phase.trains == "prompts" else "images"] = took.median()
    return found


def _noise(model, labels, n: int) -> FrozenFeatures:
    """Features of random pictures in the shapes of the model's VLP, each with a positive seen label."""
    vlp, seen = model.vlp, max(1, 4 * len(labels) // 5)
    space = LabelSpace(labels[:seen], labels[seen:])
    y = torch.where(draw(n, len(labels)) > 2, 1.0, -1.0).cpu()
    y[torch.arange(n), torch.arange(n) % space.n_seen] = 1
    return FrozenFeatures(draw(n, 1 + vlp.N**2, vlp.C).cpu().half(), draw(n, vlp.D).cpu(), y, space)


def _row(title: str, model, times: dict) -> dict:
    config = model.config
    medians = {name: statistics.median(values) if values else float("nan") for name, values in times.items()}
    training = 0.0
    for phase in config.phases:
        side = "prompts" if phase.trains == "prompts" else "images"
        if times[side]:
            training += phase.epochs * BatchOrder(phase.batch).steps(config.train_size or 0) * medians[side]
    row = {"method": title} | model.trained_parameters()
    row |= {f"step of {side}, ms": 1e3 * medians[side] for side in ("images", "prompts")}
    return row | {"training_seconds": training, "ms_per_picture": 1e3 * medians["scores"]}


def counted(preset: str = "nus_wide") -> tuple[pd.DataFrame, pd.DataFrame]:
    r"""Counted from the modules with a preset's VLP: trained parameters in millions, and trained blocks of the ViT.

    The first has the columns ``method``, ``image side``, ``text side`` and ``all``; MKT stands in it twice, as its
    released code counts and without the MLP that its forward never uses. The second: ``method``, ``trained blocks``.
    """
    rows, blocks = [], []
    for name in NAMES:
        model = registry.build(name, configs.PRESETS[preset](), pretrained=False)
        sizes = model.trained_parameters()
        rows.append({"method": model.title} | sizes)
        if hasattr(model, "unused_parameters"):
            more = sizes | {"image side": sizes["image side"] + model.unused_parameters}
            rows.append({"method": f"{model.title} with the unused MLP"} | more)
        trained = [n for n, _ in model.named_parameters() if n.startswith("block.") and n.endswith("ln_1.bias")]
        blocks.append({"method": model.title, "trained blocks": len(trained)})
    frame = pd.DataFrame(rows).set_index("method") / 1e6
    return frame.assign(all=frame.sum(axis=1)).reset_index(), pd.DataFrame(blocks)

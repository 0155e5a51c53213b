"""What each method costs, all of them measured in one run: parameters, training steps, scoring of pictures."""

import statistics

import pandas as pd
import torch

from hrcf_lib import config as configs
from hrcf_lib.data.feeds.features import FrozenFeatures
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.engine import devices
from hrcf_lib.labels import LabelSpace
from hrcf_lib.methods import registry
from hrcf_lib.speed.compare import seconds
from hrcf_lib.speed.inputs import random_images, random_normal
from hrcf_lib.training import train

HOLD = 5  # labels in a picture, about: of many more, pictures take no part in some methods' training
NAMES = ("hrcf", *registry.names("compared"))


def costs(methods: dict, labels, rounds: int = 3, steps: int = 6, pictures: int = 64) -> pd.DataFrame:
    r"""One row per method: trained parameters, time of the training that its config asks for, time of scoring.

    Each round goes through all methods in turn, so that other load of the machine falls on all of them; each number is
    the median over rounds. A step includes reading features, all losses and the optimizer. Features are stored ones,
    also where the config augments.

    Args:
        methods: title -> config.
        labels: label names to score pictures with; the first four fifths are seen in training.
        rounds: how often each method is timed.
        steps: training steps of each side per round, after one that is not counted.
        pictures: number of pictures that are scored at a time, from pixels.

    Columns: ``method``, ``image side`` and ``text side`` (numbers of trained parameters), ``step of images, ms`` and
    ``step of prompts, ms`` (NaN for a side that is not trained), ``training_seconds`` and ``ms_per_picture``.
    """
    models = {title: registry.for_config(config).to(devices.best()) for title, config in methods.items()}
    times = {title: {"images": [], "prompts": [], "scores": []} for title in methods}
    for _ in range(rounds):
        for title, model in models.items():
            for side, took in _steps(model, labels, steps).items():
                times[title][side].append(took)
            model.score(random_images(4, model.vlp.side), labels)
            took = seconds(lambda m=model: m.score(random_images(pictures, m.vlp.side), labels))
            times[title]["scores"].append(took / pictures)
    return pd.DataFrame([_row(title, models[title], times[title]) for title in methods])


def _steps(model, labels, steps: int) -> dict[str, float]:
    """Side -> seconds of a step: the median of all but the first."""
    config, found = model.config, {}
    for phase in {p.trains: p for p in config.phases}.values():
        if not model.groups(phase.trains):
            continue
        data = _noise(model, labels, phase.batch * (steps + 1))
        still = {"warmup_epochs": 0.0, "lr": 1e-12, "prompt_lr": 1e-12, "min_lr": 0.0}  # weights do not move
        stored = {"augment": "none", "stream": False}
        short = model.under(config.replace(phases=[(phase.trains, 1, phase.batch)], **stored, **still))
        took = train(short, data)["seconds"].diff().iloc[1:]
        found["prompts" if phase.trains == "prompts" else "images"] = took.median()
    return found


def _noise(model, labels, n: int) -> FrozenFeatures:
    """Random features in the shapes of the model's VLP; each picture has a positive seen label, and about ``HOLD``."""
    vlp, seen = model.vlp, max(1, 4 * len(labels) // 5)
    space = LabelSpace(labels[:seen], labels[seen:])
    rare = statistics.NormalDist().inv_cdf(max(0.5, 1 - HOLD / len(labels)))
    y = torch.where(random_normal(n, len(labels)) > rare, 1.0, -1.0).cpu()
    y[torch.arange(n), torch.arange(n) % space.n_seen] = 1
    return FrozenFeatures(random_normal(n, 1 + vlp.N**2, vlp.C).cpu().half(), random_normal(n, vlp.D).cpu(), y, space)


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
    r"""Two tables, counted from the modules with a preset's VLP: trained parameters, and trained blocks of the ViT.

    The first has the columns ``method``, ``image side``, ``text side`` and ``all``, in millions. MKT has two rows: as
    its released code counts, and without the MLP that its forward never uses. The second has ``method`` and ``trained
    blocks``.
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

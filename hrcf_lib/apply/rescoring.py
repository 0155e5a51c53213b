r"""One picture scored again and again: what does not change is computed once. The explorer's arithmetic, no widgets.

======================  ==============================================================
a new                   computes
======================  ==============================================================
picture                 image side, once (``e_g``, regions)
list of labels          their embeddings; those of the reference vocabulary once
lambda, regions kept    scores from the stored embeddings, Eqs. 9-17
threshold               answers from the scores
======================  ==============================================================

The labels are scored inside the reference vocabulary, as ``classify`` does. B = 1 picture, K labels, J regions.
"""

import copy
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from hrcf_lib.apply import region_maps
from hrcf_lib.apply.label_scorer import LabelScorer
from hrcf_lib.apply.predict import load_model, ranked
from hrcf_lib.config import Config, names_where
from hrcf_lib.data.images import read_image
from hrcf_lib.method import Method
from hrcf_lib.scores import REGIONS, regions_to_keep


class Rescorer:
    r"""A model, the picture that it looks at and the labels that it is asked for.

    Args:
        model: as for ``classify``: a ``Method``, its folder, or None for the HRCF that ships.

    Attributes: ``lam`` and ``keep`` of the model as it is, which are what its calibration was made for (``keep`` counts
    of 140, as in the config; 140 without RSS); ``calibrated`` whether there is a calibration; ``labels`` and ``scorer``
    of the last list that was taken.

    Raises what ``load_model`` raises.
    """

    def __init__(self, model: Method | str | Path | None = None):
        self.model = load_model(model)
        config = self.model.config
        self.selects = self.model.has_selection
        self.weighs = self.model.has_lambda
        self.lam, self.keep = config.lam, config.keep if config.rss and self.selects else REGIONS
        self.labels: list[str] = []
        self.scorer: LabelScorer | None = None
        self.e_g = self.regions = self._maps = None

    @property
    def calibrated(self) -> bool:
        """Whether there are probabilities under the model's own settings."""
        return self.scorer is not None and self.scorer.curve is not None

    @torch.no_grad()
    def see(self, image) -> None:
        """Look at a picture: a path or a PIL image. Raises what ``read_image`` raises, and then the last one stays."""
        picture = read_image(image, self.model.vlp.side)[None]  # (1, 3, side, side)
        self.e_g, self.regions = self.model.embed(picture)  # (1, D), (1, J, D)
        self._maps = None

    @torch.no_grad()
    def ask(self, labels) -> None:
        """Take a list of names. Raises as ``classify``, and then the last one stays."""
        self.scorer = self.scorer.for_labels(labels) if self.scorer else LabelScorer(self.model, labels)
        self.labels, self._maps = self.scorer.labels, None

    def config(self, lam: float | None = None, keep: int | None = None) -> Config:
        """The model's config with another lambda, or another number of regions kept (of 140)."""
        changes = {} if lam is None or lam == self.lam else {"lam": lam}
        if keep is not None and keep != self.keep:
            changes |= {"keep": keep, "rss": True}
        return self.model.config.replace(**changes)

    def kept(self, keep: int) -> int:
        """How many regions of this model ``keep`` of 140 are."""
        config, J = self.config(keep=keep), self.regions.shape[1]
        return regions_to_keep(config, J) if config.rss else J

    @torch.no_grad()
    def scores(self, lam: float | None = None, keep: int | None = None) -> tuple[Tensor, Tensor | None]:
        r"""Scores (K,) and probabilities (K,), on the CPU; the latter of a calibrated model, under its own settings.

        Raises ``ValueError`` for a lambda or a number of regions out of range, or scores that are not finite.
        """
        config, own = self.config(lam, keep), self.model.config
        scorer = copy.copy(self.scorer)
        scorer.model = self.model.under(config)
        if any(getattr(config, n) != getattr(own, n) for n in names_where(type(own), scores=True)):
            scorer.curve = None
        s, p = scorer.scores(self.e_g, self.regions)
        return s[0], None if p is None else p[0]

    def table(self, s: Tensor, p: Tensor | None = None, threshold: float | None = None) -> pd.DataFrame:
        r"""What ``scores`` gave, a row a label, the most probable (or the highest score) first.

        Columns: label, score, rank (by score), probability, threshold, answer; the last three where they are known.

        The threshold is one of probabilities where there are any, of scores otherwise. None: the calibration's, and
        without probabilities no answers. Raises ``ValueError`` for a probability out of range.
        """
        found = pd.DataFrame({"label": self.labels, "score": s.tolist()})
        if p is not None:
            found["probability"] = p.tolist()
            given = "calibrated" if threshold is None else float(threshold)
            found["threshold"] = self.scorer.limits(given).tolist()
        elif threshold is not None:
            found["threshold"] = float(threshold)
        if "threshold" in found:
            yes = found["score" if p is None else "probability"] >= found["threshold"]
            found["answer"] = yes.map({True: "yes", False: "no"})
        found.insert(2, "rank", ranked(s)[1].tolist())
        first = "rank" if p is None else "probability"
        return found.sort_values(first, ascending=p is None, kind="stable", ignore_index=True)

    @torch.no_grad()
    def maps(self) -> dict | None:
        r"""Label -> where it was seen, (side, side) in 0..1, as ``explain.maps_for``; None of a method without.

        All regions take part, whatever lambda and the number kept: they are computed once a picture and list.
        """
        if self._maps is None and region_maps.has_maps(self.model):
            maps = region_maps.region_maps(
                self.model, self.regions, self.scorer.t, self.scorer.columns
            )  # (1, K, side, side)
            self._maps = dict(zip(self.labels, maps[0].cpu().numpy()))
        return self._maps

r"""A user's labels beside a model's reference vocabulary: what ``classify`` and ``rescoring`` score pictures with.

B pictures, J regions, R reference labels, K labels of the user's, D embedding width.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hrcf_lib.apply import alone as alone_module
from hrcf_lib.apply import calibration, region_maps, vocabulary
from hrcf_lib.apply.calibration import Calibration
from hrcf_lib.apply.label_cache import label_embeddings, state
from hrcf_lib.engine import devices
from hrcf_lib.method import Method

NO_PROBABILITY = (
    "the model has no calibration, so no probabilities: `python -m hrcf_lib.apply.calibration FOLDER` makes one for a "
    "saved model, hrcf_lib.calibration.calibrate(model, data) for any"
)


class LabelScorer:
    r"""A model with a list of labels: pictures -> scores, probabilities, maps.

    Args:
        model: in evaluation mode.
        labels: K names, as ``own_labels.read`` gives them.
        device: to move the model to; by default it stays where it is.

    Attributes: ``curve`` the calibration, or None; ``t`` the embeddings of all that are scored together, which are
    ``reference`` (R, D) and then ``own``, those of labels that the reference lacks; ``at`` (K,) the rows of the labels
    in ``t``; ``columns`` the same as a list, with None for a label of ``own``.

    Raises ``ValueError`` for names that the text tower reads alike, does not know or cannot take, or a device that is
    not there.
    """

    def __init__(self, model: Method, labels: list[str], device=None):
        self.model = model if device is None else model.to(devices.named(device))
        now = state(model)  # once: it goes through all weights
        self.curve: Calibration | None = calibration.for_model(model, now) if model.reference_labels else None
        self.labels = labels
        names, columns = vocabulary.reference_columns(model, labels)
        R = len(model.reference_labels)
        vocabulary.check_lengths(model, names[R:])
        parts = [label_embeddings(model, part, now) for part in (names[:R], names[R:]) if part]
        self.t = torch.cat(parts)  # (R + K of own, D)
        self.reference, self.own = self.t[:R], self.t[R:]
        self.columns = [k if k < R else None for k in columns]  # as ``alone.score_among`` takes them
        self.at = torch.tensor(columns, device=self.t.device)  # (K,) of ``t``

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Scores and probabilities (B, K) on the CPU, regions (B, J, D). Raises as ``of``."""
        e_g, regions = self.model.embed(pictures)
        return *self.of(e_g, regions), regions

    def of(self, e_g: Tensor, regions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores and probabilities (B, K) of what ``embed`` gave. Raises ``ValueError`` for scores that are NaN."""
        s = self.model.score_embeddings(e_g, regions, self.t)[:, self.at].cpu()  # (B, K)
        if not s.isfinite().all():
            raise ValueError("scores are NaN or infinite: look at the pictures' pixels, or at the model's weights")
        p = None if self.curve is None else self.curve.probability(self._alone(e_g, regions))  # (B, K)
        return s, p

    def alone(self, pictures: Tensor) -> Tensor:
        """Scores (B, K) of each label alone beside the reference vocabulary, on the CPU."""
        return self._alone(*self.model.embed(pictures))

    def _alone(self, e_g: Tensor, regions: Tensor) -> Tensor:
        return alone_module.score_among(self.model, e_g, regions, self.reference, self.own, self.columns).cpu()

    def limits(self, threshold) -> Tensor | None:
        """The threshold of each label (K,), or None; ``threshold`` as for ``classify``.

        Raises ``ValueError`` for one that is no probability or of no label, or without a calibration.
        """
        if threshold is None:
            return None
        if self.curve is None:
            raise ValueError(f"threshold = {threshold!r}: {NO_PROBABILITY}")
        if isinstance(threshold, str) and threshold == "calibrated":
            return self.curve.thresholds_for(self.labels)
        own = threshold if isinstance(threshold, Mapping) else {"threshold": threshold}
        for name, value in own.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                what = f"the threshold of {name!r}" if isinstance(threshold, Mapping) else "threshold"
                raise ValueError(f"{what} is {value!r}: give a probability from 0 to 1, or threshold='calibrated'")
        if not isinstance(threshold, Mapping):
            return torch.full((len(self.labels),), float(threshold), dtype=torch.float64)
        asked = set(map(vocabulary.read_alike, self.labels))
        if strange := [name for name in own if vocabulary.read_alike(name) not in asked]:
            raise ValueError(f"a threshold for {strange[0]!r}, which is not among the labels: add it, or drop this one")
        return replace(self.curve, thresholds=self.curve.thresholds | dict(own)).thresholds_for(self.labels)

    def check_maps(self) -> None:
        """Raise ``ValueError`` for a method without maps of its own."""
        region_maps.kind_of(self.model)

    def maps(self, regions: Tensor, ks: Tensor):
        """Of one picture's regions (1, J, D), maps (k, side, side) of labels ``ks``; as ``explain.maps_for``."""
        return (
            region_maps.region_maps(self.model, regions, self.t, self.at[ks.to(self.at.device)])[0].half().cpu().numpy()
        )

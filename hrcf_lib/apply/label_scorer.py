r"""A model with a user's labels embedded: what ``classify`` and the explorer score pictures with.

B pictures, J regions, R reference labels, K labels of a user, V labels that are scored together, D embedding width.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hrcf_lib.apply import calibration, region_maps, vocabulary
from hrcf_lib.apply.calibration import Calibration
from hrcf_lib.engine import devices
from hrcf_lib.engine.messages import is_real
from hrcf_lib.method import Method

NO_PROBABILITY = (
    "the model has no calibration, so no probabilities: `python -m hrcf_lib.apply.calibration FOLDER` makes one for a "
    "saved model, hrcf_lib.apply.calibration.calibrate(model, data) for any"
)


class LabelScorer:
    r"""A model with a list of labels: pictures -> scores, probabilities, maps.

    It embeds the labels once, for as long as it is kept; a model that is trained further needs a new one.

    Args:
        model: in evaluation mode.
        labels: K names, a file of them, or a ``Vocabulary``.
        device: to move the model to; by default it stays where it is.
        reference: (R, D) embeddings of the model's reference labels where they are known (``for_labels``).

    Attributes: ``labels`` the cleaned names; ``curve`` the calibration, or None; ``t`` (V, D) the embeddings of all
    labels that are scored together, which are ``reference`` (R, D) and then ``new``, those of labels that the reference
    lacks; ``columns`` (K,) the rows of the labels in ``t``.

    Raises ``TypeError`` for no ``Method``, and ``ValueError`` as ``vocabulary.beside_reference``, for names that the
    text tower does not know, or a device that this machine does not have.
    """

    @torch.no_grad()
    def __init__(self, model: Method, labels, device=None, reference: Tensor | None = None):
        if not isinstance(model, Method):
            raise TypeError(f"model is a {type(model).__name__}: give an HRCF or another Method, as load_model returns")
        words = vocabulary.beside_reference(model, labels)
        vocabulary.check_lengths(model, words.new)
        self.model = model if device is None else model.to(devices.named(device))
        self.curve: Calibration | None = calibration.for_model(model) if words.reference else None
        self.labels = words.labels
        embed = lambda names: model.label_embeddings(names) if names else None
        parts = [embed(words.reference) if reference is None else reference, embed(words.new)]
        self.t = torch.cat([part for part in parts if part is not None])  # (V, D)
        self.reference, self.new = self.t.split([len(words.reference), len(words.new)])
        self.columns = torch.tensor(words.columns, device=self.t.device)  # (K,)

    def for_labels(self, labels) -> "LabelScorer":
        """A scorer of other labels; the reference vocabulary is not embedded again. Raises as ``LabelScorer``."""
        return LabelScorer(self.model, labels, reference=self.reference if len(self.reference) else None)

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Scores and probabilities (B, K) on the CPU, regions (B, J, D). Raises as ``scores``."""
        e_g, regions = self.model.embed(pictures)
        return *self.scores(e_g, regions), regions

    def scores(self, e_g: Tensor, regions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores and probabilities (B, K) of what ``embed`` returned. ``ValueError`` for NaN or infinite scores."""
        s = self.model.score_embeddings(e_g, regions, self.t)[:, self.columns].cpu()  # (B, K)
        if not s.isfinite().all():
            raise ValueError("scores are NaN or infinite: look at the pictures' pixels, or at the model's weights")
        p = None if self.curve is None else self.curve.probability(self._alone(e_g, regions))  # (B, K)
        return s, p

    def alone(self, pictures: Tensor) -> Tensor:
        """Scores (B, K) of each label alone beside the reference vocabulary, on the CPU."""
        return self._alone(*self.model.embed(pictures))

    def _alone(self, e_g: Tensor, regions: Tensor) -> Tensor:
        """``alone`` of what ``embed`` returned. A label of the reference vocabulary is scored within it alone."""
        inside = e_g.new_empty(len(e_g), len(self.reference))
        outside = self.model.score_alone(e_g, regions, self.reference, self.new)
        if (self.columns < len(self.reference)).any():
            inside = self.model.score_embeddings(e_g, regions, self.reference)
        return torch.cat([inside, outside], dim=1)[:, self.columns].cpu()  # (B, K)

    def limits(self, threshold) -> Tensor | None:
        """The threshold of each label (K,), or None; ``threshold`` as for ``classify``.

        Raises ``ValueError`` for a value that is not a probability, a name that is not among the labels, or a model
        without a calibration.
        """
        if threshold is None:
            return None
        if self.curve is None:
            raise ValueError(f"threshold = {threshold!r}: {NO_PROBABILITY}")
        if isinstance(threshold, str) and threshold == "calibrated":
            return self.curve.thresholds_for(self.labels)
        given = threshold if isinstance(threshold, Mapping) else {"threshold": threshold}
        for name, value in given.items():
            if not isinstance(name, str):
                raise ValueError(f"a threshold for {name!r}, which is no label: give names, as in {{'owl': 0.3}}")
            if not is_real(value) or not 0 <= value <= 1:
                what = f"the threshold of {name!r}" if isinstance(threshold, Mapping) else "threshold"
                raise ValueError(f"{what} is {value!r}: give a probability from 0 to 1, or threshold='calibrated'")
        if not isinstance(threshold, Mapping):
            return torch.full((len(self.labels),), float(threshold), dtype=torch.float64)
        asked = set(map(vocabulary.read_alike, self.labels))
        if strange := [name for name in given if vocabulary.read_alike(name) not in asked]:
            raise ValueError(f"a threshold for {strange[0]!r}, which is not among the labels: add it, or drop this one")
        if given:
            vocabulary.read_labels(list(given))  # two names that are read alike would have one threshold
        return replace(self.curve, thresholds=self.curve.thresholds | dict(given)).thresholds_for(self.labels)

    def check_maps(self) -> None:
        """Raise ``ValueError`` for a method without maps of its own."""
        region_maps.check_maps(self.model)

    def maps(self, regions: Tensor, ks: Tensor):
        """maps (k, side, side), float16, of labels ``ks`` in one picture, from its regions (1, J, D)."""
        columns = self.columns[ks.to(self.columns.device)]
        return region_maps.region_maps(self.model, regions, self.t, columns)[0].half().cpu().numpy()

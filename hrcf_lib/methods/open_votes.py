r"""HRCF with open votes: a region may vote for a seen label that nobody asked for (ours, notebook 19).

Eq. 12 shares the vote of a region among the labels that are asked for. If only unseen labels are asked for, a region
that shows a seen thing has to name one of them. Here the softmax of Eq. 12, the ranking of Eq. 17 and the norms of the
fusion run over the labels that are asked for *and* the seen labels of training; the columns of the former come back:

$$w_{jk} = \frac{e^{s_{jk}}}{\sum_{m \in A \cup S} e^{s_{jm}}}, \qquad k \in A$$

A labels that are asked for, S seen labels. Nothing else differs from HRCF, training included: the weights of one are
those of the other, and ``votes="asked"`` is the paper's form. Where all seen labels are asked for, as in GZSL, both are
the same. ``classify`` scores a user's labels so in any case.
"""

import dataclasses
from dataclasses import dataclass

from hrcf_lib.config import Config, setting
from hrcf_lib.model import HRCF


@dataclass(frozen=True)
class HRCFOpenConfig(Config):
    """HRCF's settings; ``votes`` is "open"."""

    method = "hrcf_open"

    votes: str = setting("open", choices=("asked", "open"), scores=True, weights=False, before="asked")

    @classmethod
    def of(cls, config: Config, **changes) -> "HRCFOpenConfig":
        """HRCF's ``config``, such as a preset, with open votes. Raises ``ValueError`` for that of another method."""
        if isinstance(config, cls):
            return config.replace(**changes)
        if type(config) is not Config:
            raise ValueError(
                f"{cls.__name__} cannot be made of a {type(config).__name__}: give a preset such as mini()"
            )
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return cls(**values | {"votes": "open"} | changes)


class HRCFOpen(HRCF):
    """HRCF whose regions may vote for the seen labels, too."""

    title, Config = "HRCF, open votes", HRCFOpenConfig
    about = "HRCF (Ma et al., IEEE TMM 2025) whose regions may vote for the seen labels, too; that is ours."

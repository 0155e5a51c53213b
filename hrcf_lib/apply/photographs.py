r"""Telling photographs from drawings: models of the mini VLP know OpenMoji drawings only, and say so of anything else.

A drawing has few colours, and most of its pixels share theirs with others; of a photograph nearly every pixel has a
colour of its own. Different colours per pixel at 112 x 112: of the colour photographs that come with scikit-image,
scikit-learn and matplotlib 0.6 to 0.9, and less of a night sky and of a rocket before a clear one; of scenes of
MojiScenes 0.4 in the middle, and above 0.6 for one in eleven, whose noise makes them. Noise is told by neighbours: in
photographs the brightness of half of them differs by at most 11 of 255, in all but 3 of 800 scenes with so many colours
by more. Scenes are never grey; a picture that is, with many levels none of which is a background, is a photograph or a
scan.

So single photographs are missed, and a drawing with gradients all over, or a scene that JPEG has compressed strongly,
may be taken for one: what follows is a warning, for which more than one picture in twenty has to look like one.
"""

import torch
from torch import Tensor

from hrcf_lib.engine.messages import list_some, tell
from hrcf_lib.vlp import MINI

COLOURS = 0.6  # different colours per pixel from which a picture counts as a photograph
GRAIN = 12  # median difference of neighbours in brightness, of 255, above which the colours are those of noise
LEVELS = 100  # of grey, from which a grey picture does, if it has no background
BACKGROUND = 0.25  # share of the pixels of one grey
LOOKED_AT = 100  # pictures of a call, the first ones
SIGN = 0.05  # share of them above which it is said


def is_photograph(picture: Tensor) -> bool:
    """Whether a picture (3, h, w), uint8, has as many colours, or levels of grey, as photographs have."""
    red, green, blue = picture.int().flatten(1)  # (h*w,) each
    if torch.equal(red, green) and torch.equal(green, blue):
        levels = red.bincount()
        return bool((levels > 0).sum() >= LEVELS and levels.max() < BACKGROUND * len(red))
    if len(torch.unique((red << 16) | (green << 8) | blue)) <= COLOURS * len(red):
        return False
    brightness = picture.float().mean(0)  # (h, w)
    return bool((brightness[:, 1:] - brightness[:, :-1]).abs().median() <= GRAIN)


class Watch:
    """Looks at the first pictures that a model of the mini VLP is given, and warns at the end. Of other VLPs nothing is
    looked at."""

    def __init__(self, model):
        self.left = LOOKED_AT if model.vlp.name == MINI else 0
        self.seen, self.photographs = 0, []

    def see(self, picture: Tensor, name: str) -> None:
        """Look at one picture (3, side, side), uint8."""
        if self.seen < self.left:
            self.seen += 1
            self.photographs += [name] * is_photograph(picture)

    def warn(self) -> None:
        """Warn if more of the pictures than ``SIGN`` look like photographs."""
        if self.seen and len(self.photographs) > SIGN * self.seen:
            tell(self.message())

    def message(self) -> str:
        """What is wrong, and what to do."""
        return (
            f"{len(self.photographs)} of {self.seen} pictures have as many colours as photographs "
            f"({list_some(self.photographs)}), and the VLP of this model, {MINI}, knows OpenMoji drawings only: its "
            "answers mean nothing there. For photographs give model='ViT-B-16', which is CLIP (600 MB, downloaded once)"
        )

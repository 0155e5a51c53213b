r"""Hierarchical clue gathering, HCG (Sec. III-C, Eqs. 6-7, and Eq. 10): ViT tokens -> regions at three scales.

$$H^0 = \mathrm{reshape}(R_1, \ldots, R_{N^2}), \qquad H^{l+1} = \mathrm{LN}_{l+1}\big(
  \mathrm{Conv}_2(\mathrm{ReLU}(\mathrm{Conv}_1(H^l))) + \mathrm{Bilinear}(H^l)\big), \quad l = 0, 1, 2 \tag{6, 7}$$

Both convolutions are 3 x 3, stride 1, without padding, so each merge takes 4 off the side: 14 -> 10 -> 6 -> 2, which
makes J = 10^2 + 6^2 + 2^2 = 140 regions. A region of level l sees [P (4 l + 1)]^2 pixels of patches of side P (Sec.
III-C): 80, 144 and 208 of 224 with ViT-B/16, 40, 72 and 104 of 112 with the mini VLP.

The rest of Sec. III-C is elsewhere: the ViT and the teacher's embedding (Eqs. 1, 4) in ``vlp.py``, the output tokens
and the head MH (Eqs. 2-3, 8) in ``model.py``, distillation (Eq. 5) in ``losses.py``. MH treats each region by itself,
so it can follow the concatenation of the levels (Eq. 10), which is done here.

Printed: two convolutions and a layer norm for the merge. Which of them the three merges share is not printed. Here the
convolutions are shared; each level has a layer norm of its own over (C, h, w), which fixes the size of the input
picture. With CLIP's ViT-B/16 that gives 18,316,032 trainable parameters, the paper's 18.3 M. The count rules out
convolutions of each merge's own (39.6 M), not every other reading: without bias in the convolutions it is 18,314,496.
The start at zero is ours. B pictures, N side of the patch grid, C width of the ViT.

Source: Sec. III-C of HRCF (Ma et al., IEEE TMM 2025), which has no public code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HierarchicalClueGathering(nn.Module):
    r"""Merge an N x N grid of C-dimensional tokens ``merges`` times.

    Args:
        width: C, width of the ViT.
        grid: N, side of the patch grid.
        merges: number of levels, at least 1.
        start_at_zero: the second convolution starts at zero, so that training starts from resized VLP tokens.
        levels: whose maps are regions, 1 to ``merges``; none given: all. 0 is H^0, the patches (ours). Merges above
            the highest are left out.
        shared: ``False`` gives each merge convolutions of its own: 39.6 M trainable parameters with ViT-B/16 (ours).

    Attributes: ``levels``, and ``sides`` of their maps, [10, 6, 2] for N = 14.

    Raises:
        ValueError: fewer than one merge, a grid too small for that many (each takes 4 off its side), or a level that
            is not among them.
    """

    def __init__(
        self,
        width: int,
        grid: int,
        merges: int = 3,
        start_at_zero: bool = True,
        levels: tuple[int, ...] = (),
        shared: bool = True,
    ):
        super().__init__()
        if not 1 <= merges <= (grid - 1) // 4:
            raise ValueError(
                f"{merges} merges of a {grid} x {grid} grid: each takes 4 off its side; choose 1 to {(grid - 1) // 4}"
            )
        self.levels = sorted(set(levels)) or list(range(1, merges + 1))
        if not 0 <= self.levels[0] <= self.levels[-1] <= merges or self.levels[-1] == 0:
            raise ValueError(
                f"levels {tuple(levels)} of {merges} merges: choose among 1 to {merges}, and 0 beside them"
            )
        self.sides = [grid - 4 * l for l in self.levels]
        merges = self.levels[-1]
        self.grid, self.shared = grid, shared or merges == 1
        self.conv1 = _convolutions(width, 1 if self.shared else merges)
        self.conv2 = _convolutions(width, 1 if self.shared else merges)
        self.norms = nn.ModuleList(nn.LayerNorm((width, grid - 4 * l, grid - 4 * l)) for l in range(1, merges + 1))
        if start_at_zero:
            for p in self.conv2.parameters():
                nn.init.zeros_(p)

    @property
    def J(self) -> int:
        """Number of regions over all levels."""
        return sum(side**2 for side in self.sides)

    def merge(self, H: Tensor, level: int) -> Tensor:
        r"""H^{l+1} from H^l, of l = ``level``, from 0 (Eq. 7): (B, C, h, h) -> (B, C, h-4, h-4)."""
        side = self.grid - 4 * (level + 1)
        conv1, conv2 = (self.conv1, self.conv2) if self.shared else (self.conv1[level], self.conv2[level])
        near = conv2(F.relu(conv1(H)))  # (B, C, h-4, h-4)
        pooled = F.interpolate(H, size=(side, side), mode="bilinear", align_corners=False)  # (B, C, h-4, h-4)
        return self.norms[level](near + pooled)  # (B, C, h-4, h-4)  H^{l+1} of Eq. 7

    def forward(self, tokens: Tensor) -> Tensor:
        r"""Patch tokens (B, N*N, C) -> regions (B, J, C), level after level, each row by row.

        Raises ``ValueError`` if the tokens are not those of an N x N grid.
        """
        B, patches, C = tokens.shape
        N = self.grid
        if patches != N * N:
            raise ValueError(
                f"{patches} patch tokens do not form the {N} x {N} grid this model was built for; resize the pictures"
            )
        H = tokens.transpose(1, 2).reshape(B, C, N, N)  # (B, C, N, N)  H^0 of Eq. 6
        maps = [tokens] if 0 in self.levels else []  # (B, N*N, C)
        for level in range(self.levels[-1]):
            H = self.merge(H, level)
            if level + 1 in self.levels:
                maps.append(H.flatten(2).transpose(1, 2))  # (B, h*h, C)
        return torch.cat(maps, dim=1)  # (B, J, C)  Eq. 10

    def level_of(self) -> Tensor:
        """(J,) level (0,) 1, 2, ... of each region, in the order of ``forward``."""
        return torch.cat([torch.full((s * s,), l) for l, s in zip(self.levels, self.sides, strict=True)])


def _convolutions(width: int, number: int) -> nn.Module:
    """One 3 x 3 convolution for all merges, or a list of one each."""
    if number == 1:
        return nn.Conv2d(width, width, 3)
    return nn.ModuleList(nn.Conv2d(width, width, 3) for _ in range(number))

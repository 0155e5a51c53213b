r"""Hierarchical clue gathering, HCG (Sec. III-B, Eqs. 1-4 and 6-8): ViT tokens -> regions at three scales.

$$H^0 = \mathrm{reshape}(R_1, \ldots, R_{N^2}), \qquad
  H^l = \mathrm{LN}_l\big(\mathrm{Conv}_2(\mathrm{ReLU}(\mathrm{Conv}_1(H^{l-1}))) + \mathrm{Bilinear}(H^{l-1})\big)$$

Both convolutions are 3 x 3, stride 1, without padding, so each merge takes 4 off the side: 14 -> 10 -> 6 -> 2, which
makes J = 10^2 + 6^2 + 2^2 = 140 regions. The convolutions are shared by the merges; each level has a layer norm of its
own over (C, h, w), which fixes the size of the input picture. With CLIP's ViT-B/16 that is the paper's count of
trainable parameters, 18.3 M; the start at zero is ours. B pictures, N side of the patch grid, C width of the ViT.

Source: Sec. III-B of HRCF (Ma et al., IEEE TMM 2025), which has no public code.
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

    Attributes: ``sides`` of the levels' maps, [10, 6, 2] for N = 14.

    Raises:
        ValueError: fewer than one merge, or a grid too small for that many (each takes 4 off its side).
    """

    def __init__(self, width: int, grid: int, merges: int = 3, start_at_zero: bool = True):
        super().__init__()
        if not 1 <= merges <= (grid - 1) // 4:
            raise ValueError(
                f"{merges} merges of a {grid} x {grid} grid: each takes 4 off its side; choose 1 to {(grid - 1) // 4}"
            )
        self.sides = [grid - 4 * l for l in range(1, merges + 1)]
        self.conv1 = nn.Conv2d(width, width, 3)
        self.conv2 = nn.Conv2d(width, width, 3)
        self.norms = nn.ModuleList(nn.LayerNorm((width, side, side)) for side in self.sides)
        if start_at_zero:
            nn.init.zeros_(self.conv2.weight)
            nn.init.zeros_(self.conv2.bias)

    @property
    def J(self) -> int:
        """Number of regions over all levels."""
        return sum(side**2 for side in self.sides)

    def merge(self, H: Tensor, level: int) -> Tensor:
        r"""The map of ``level`` (0 is the first merge) from the map below it: (B, C, h, h) -> (B, C, h-4, h-4)."""
        side = self.sides[level]
        near = self.conv2(F.relu(self.conv1(H)))  # (B, C, h-4, h-4)
        pooled = F.interpolate(H, size=(side, side), mode="bilinear", align_corners=False)  # (B, C, h-4, h-4)
        return self.norms[level](near + pooled)

    def forward(self, tokens: Tensor) -> Tensor:
        r"""Patch tokens (B, N*N, C) -> regions (B, J, C), level after level, each row by row.

        Raises ``ValueError`` if the tokens are not those of an N x N grid.
        """
        B, patches, C = tokens.shape
        N = self.sides[0] + 4
        if patches != N * N:
            raise ValueError(
                f"{patches} patch tokens do not form the {N} x {N} grid this model was built for; resize the pictures"
            )
        H = tokens.transpose(1, 2).reshape(B, C, N, N)  # (B, C, N, N)  H^0
        levels = []
        for level in range(len(self.sides)):
            H = self.merge(H, level)
            levels.append(H.flatten(2).transpose(1, 2))  # (B, h*h, C)
        return torch.cat(levels, dim=1)  # (B, J, C)

    def level_of(self) -> Tensor:
        """(J,) level 1, 2, ... of each region, in the order of ``forward``."""
        return torch.cat([torch.full((s * s,), l + 1) for l, s in enumerate(self.sides)])

r"""Grad-CAM (Selvaraju et al., ICCV 2017) of one label's score, for HRCF and every other method (Figs. 6-7).

$$\alpha_c = \frac{1}{N^2} \sum_{p} \frac{\partial S_k}{\partial A_{pc}}, \qquad
  M_p = \mathrm{ReLU}\Big(\sum_c \alpha_c A_{pc}\Big)$$

S_k is the fused score of label k in evaluation mode (for HRCF Eq. 14, with RSS), p a patch, c a channel.
pytorch-grad-cam computes the map; the class token is dropped, and the N^2 patch tokens form an N x N grid.

**Which A.** The papers do not say. Here it is the norm before the *last* block's attention (``ln_1``), the same point
in every method: HRCF trains one block and MKT two, so their trunks are cut at different places, but both have a last
block. pytorch-grad-cam recommends it for ViTs, and it is the last layer that every score depends on: after that
attention, a method that scores the class token alone has no gradient at the patches. The residual connection around the
attention is not seen. Three other layers were tried on 100 scenes of *val* (pointing game in percent, chance is 13):
the input of the last block gives 11 (HRCF) and 12 (MKT), its output 16 and 10, the final norm 15 and 11; the choice
here gives 30 and 34. Of a ResNet it is the last map, as Selvaraju et al. take it: the mean over the map, with which the
attention pool asks, is part of what the score depends on.

The frozen trunk runs once per picture; what follows it, once for each pair of picture and label. B pictures, K labels,
V labels that are scored together, N side of the patch grid or of a ResNet's last map, C width of the image tower.
"""

import copy
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hrcf_lib.apply.vocabulary import beside_reference
from hrcf_lib.vlp import with_mean


def grad_cam(model, images: Tensor, labels, layer: nn.Module | None = None, batch: int = 64) -> Tensor:
    r"""Maps (B, K, side, side) in 0..1, float32 on the CPU, of pictures (B, 3, side, side) for K label names.

    Args:
        model: a ``Method``. Weights, gradients and mode are left as they are.
        images: uint8 or float in 0..1.
        labels: names, scored inside the model's reference vocabulary as ``predict.classify`` does.
        layer: a module between the trunk and the scores whose output is tokens (B, 1 + N^2, C); None: ``ln_1`` of the
            last block, or the last map of a ResNet.
        batch: pairs of picture and label at a time.

    A map is stretched to 0..1; it is 0 everywhere if nothing in the picture raises the score.

    Raises:
        ValueError: labels as ``predict.classify``, pictures as ``VLP.normalise``; a method whose last block is not
            found, a layer whose output is no such tokens, or one that the scores do not depend on. ImportError: no
            pytorch-grad-cam, which comes with the extra ``notebooks``.
    """
    words = beside_reference(model, labels)
    return torch.stack(maker(model, words, layer, batch)(images, [words.labels] * len(images)))


def maker(model, names, layer: nn.Module | None = None, batch: int = 64) -> Callable:
    r"""A function (pictures, B lists of names) -> B maps (k, side, side), where each picture has its own labels.

    The labels of each picture are among ``names``; softmax and norms run over the reference vocabulary and all of
    ``names``, which are embedded here, once. Arguments and errors as for ``grad_cam``.
    """
    words = beside_reference(model, names)
    with torch.no_grad():
        t = model.label_embeddings(words.names)  # (V, D)

    def make(images: Tensor, asked) -> list[Tensor]:
        rows = torch.tensor([i for i, own in enumerate(asked) for _ in own], dtype=torch.long)
        ks = words.columns_of(name for own in asked for name in own)
        return list(_maps(model, images, t, rows, ks, layer, batch).split([len(own) for own in asked]))

    return make


def _maps(model, images: Tensor, t: Tensor, rows: Tensor, ks: list[int], layer, batch: int) -> Tensor:
    """Maps (n, side, side) of n pairs: picture ``rows[i]``, column ``ks[i]`` of the labels ``t`` (V, D)."""
    kind, target = _library()
    N, side = model.vlp.N, model.vlp.side
    with _without_gradients(model):
        tokens = _trunk(model, images)  # (B, 1 + N*N, C)
        scorer = _FromTokens(model, t)
        own = last_norm(model) if model.vlp.is_vit else scorer.rest[0]
        cam = kind(scorer, [own if layer is None else layer], lambda x: grid(x, N))
        cam.side, cam.title = side, model.title
        try:
            parts = [torch.empty(0, side, side)]
            for first in range(0, len(ks), batch):
                own = tokens[rows[first : first + batch].to(tokens.device)].requires_grad_()
                parts.append(torch.from_numpy(cam(own, [target(k) for k in ks[first : first + batch]])))
        finally:
            cam.activations_and_grads.release()
    return torch.cat(parts)


def grid(tokens: Tensor, N: int) -> Tensor:
    """Tokens (B, 1 + N^2, C) -> (B, C, N, N) of the patches. Raises ``ValueError`` for any other shape."""
    if tokens.ndim != 3 or tokens.shape[1] != 1 + N * N:
        raise ValueError(
            f"the layer gives {tuple(tokens.shape)}, not tokens (B, {1 + N * N}, C) of a {N} x {N} grid and the class "
            "token: choose a block of the ViT"
        )
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (N, N))


class _FromTokens(nn.Module):
    """From the input of the last block, or of the first block that the method trains, to scores (B, V)."""

    def __init__(self, model, t: Tensor):
        super().__init__()
        self.model, self.t, self.rest = model, t, nn.Sequential(*_rest_of_trunk(model))

    def forward(self, tokens: Tensor) -> Tensor:
        model, x = self.model, self.rest(tokens)  # (B, 1 + N*N, C)
        s = model.score_embeddings(*model.image_embeddings(x), self.t)  # (B, K)
        if not s.requires_grad:
            raise ValueError(_no_path(model.title))
        return s

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing: parameters get no gradient here, and keep the one they have."""


def _trunk(model, images: Tensor) -> Tensor:
    """The frozen part, at most up to the input of the last block: -> (B, 1 + N^2, C), float32."""
    vlp = copy.copy(model.vlp)
    vlp.trained_blocks = max(model.trained_blocks, 1)
    with torch.no_grad():
        return vlp.trunk(images)


def _rest_of_trunk(model) -> list[nn.Module]:
    """The VLP's last block for a method that trains none, whose ``image_embeddings`` do not contain it.

    Of a ResNet, whose trunk is whole: the last map as it is, then its mean taken anew, so that gradients pass by it.
    """
    if not model.vlp.is_vit:
        return [nn.Identity(), _MeanInFront()]
    return list(model.vlp.model.visual.transformer.resblocks)[-1:] if model.trained_blocks == 0 else []


class _MeanInFront(nn.Module):
    """Tokens (B, 1 + N^2, C) of a ResNet, the first computed from the others."""

    def forward(self, tokens: Tensor) -> Tensor:
        return with_mean(tokens[:, 1:])


def last_norm(model) -> nn.Module:
    """``ln_1`` of the last block that pictures pass. Raises ``ValueError`` if it is not found."""
    blocks = _rest_of_trunk(model) if model.trained_blocks == 0 else getattr(model, "block", None)
    last = blocks[-1] if isinstance(blocks, (list, nn.Sequential)) and len(blocks) else blocks
    if not isinstance(getattr(last, "ln_1", None), nn.Module):
        raise ValueError(
            f"{model.title} trains {model.trained_blocks} blocks, and model.block does not end in one with a norm "
            "ln_1: give as layer the module in front of its last attention"
        )
    return last.ln_1


def _no_path(title: str) -> str:
    return (
        f"no gradient of the scores of {title} reaches the patch tokens of this layer: choose one that they depend on, "
        "in front of the last block's attention where only the class token is scored"
    )


@contextmanager
def _without_gradients(model):
    """Evaluation mode and no gradients of parameters inside; afterwards both are as before."""
    training, learn = model.training, [p for p in model.parameters() if p.requires_grad]
    try:
        model.eval()
        for p in learn:
            p.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for p in learn:
            p.requires_grad_(True)
        model.train(training)


def _library():
    """pytorch-grad-cam's ``GradCAM`` for models that take tokens, and its target. Imported here: it takes seconds."""
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise ImportError(
            "Grad-CAM needs pytorch-grad-cam: pip install 'hrcf[notebooks]', or pip install grad-cam"
        ) from error

    class TokenCAM(GradCAM):
        """Its input is not the picture, so ``side`` gives the size of the maps."""

        side, title = 0, ""

        def get_target_width_height(self, input_tensor):
            return self.side, self.side

        def get_cam_weights(self, input_tensor, target_layer, targets, activations, grads):
            if grads is None or not grads.any():
                raise ValueError(_no_path(self.title))
            return super().get_cam_weights(input_tensor, target_layer, targets, activations, grads)

    return TokenCAM, ClassifierOutputTarget

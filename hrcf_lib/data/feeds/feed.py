r"""What ``train`` and ``evaluate`` ask of their data: the interface of frozen features and of pictures.

b pictures in a batch, K labels, N^2 patches, C width of the image tower, D embedding width.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor

from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.labels import LabelSpace


@runtime_checkable
class Batches(Protocol):
    """What the steps of one training phase read; ``space`` names the columns of its labels."""

    space: LabelSpace

    def batches(self, order: BatchOrder) -> Iterator[tuple]:
        """(rows, inputs for ``frozen``, labels (b, K) in -1/0/+1) of this process, step by step, on the CPU."""

    def frozen(self, vlp, inputs, bf16: bool = False) -> tuple:
        """Images as the method takes them, and teacher embeddings (b, D); float32, on the VLP's device.

        Images are trunk tokens (b, 1 + N^2, C); for ``embeddings.FixedImageSide`` they are (e_g, regions).
        """


@runtime_checkable
class Feed(Batches, Protocol):
    r"""One split of a data set, for training and evaluation: ``FrozenFeatures``, ``Pictures`` or ``StreamedPictures``.

    Attributes:
        augment: how training pictures are augmented, as in ``Config.augment``; ``"none"`` if they are not.
        trained_blocks: last blocks of a ViT that the trunk tokens leave out (``VLP.trained_blocks``); None if the
            feed asks the VLP for tokens anew in every pass, so that any number fits.

    A feed that ``evaluate`` reads also has ``labels``, (n, K) in -1/0/+1; a stream has none.
    """

    augment: str
    trained_blocks: int | None

    def __len__(self) -> int:
        """n, the number of pictures."""

    def tokens(self, vlp, inputs) -> Tensor:
        """Trunk tokens (b, 1 + N^2, C), float32, on the VLP's device: all that evaluation needs."""

    def take(self, rows, labels_of=None) -> "Feed":
        """Some pictures, with their own labels or, as a control, with those of the rows ``labels_of``."""

    def relabel(self, dataset) -> "Feed":
        """The same pictures with the annotation of ``dataset``, which has as many."""

    def identity(self) -> dict:
        """Plain values that differ for other pictures or other labels: a checkpoint belongs to data of one identity."""

    def has_positives(self) -> bool:
        """Whether any picture has a positive seen label."""


def check_feed(model, data) -> None:
    """Raise ``TypeError`` for what is no method, and for what is no feed, such as the Dataset that one is made of, and
    ``ValueError`` for tokens of another depth than ``model`` takes: they have the same shape."""
    if not hasattr(model, "score_embeddings"):
        raise TypeError(f"model is a {type(model).__name__}, and no method: give one of methods.build or methods.load")
    if not isinstance(data, Batches):
        raise TypeError(
            f"data is a {type(data).__name__}, and no feed: give sources.source(model, split), or of a Dataset "
            "pictures.Pictures(dataset, model.vlp), both of hrcf_lib.data.feeds"
        )
    given, needed = data.trained_blocks, model.vlp.trained_blocks
    if given is not None and given != needed:
        raise ValueError(
            f"these features are tokens before the last {given} blocks of the ViT, {model.title} takes those before "
            f"the last {needed}: make them for this model (sources.source(model, split)), or take a studies.shelf"
        )

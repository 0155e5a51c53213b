r"""Label embeddings, computed once for a list of names and a state of the model, and kept with the model.

What is kept is never stale: the key holds the values of all weights of the prompt, which is what learns on the text
side. It goes when the model goes.
"""

import hashlib
from collections import OrderedDict
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

LISTS = 8  # lists of names kept for a model: the longest unused goes first
ENTRIES = 2**25  # numbers kept for a model, 128 MiB in float32; a longer list is not kept
_kept: WeakKeyDictionary = WeakKeyDictionary()


@torch.no_grad()
def state(model) -> str:
    r"""Changes whenever the config, the device or a weight of the model does.

    Of the prompt the values count; of other weights that may learn their sum, too, as not every optimiser tells PyTorch
    that it wrote (a fused one does not); of the frozen VLP where they lie and how often they were written to.
    """
    digest = hashlib.sha256(repr((model.config, model.vlp.mean.device)).encode())
    for name, x in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {x.data_ptr()} {None if x.is_inference() else x._version} {tuple(x.shape)}".encode())
        if name.startswith("prompt."):
            digest.update(x.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        elif not name.startswith("vlp."):
            digest.update(str(x.sum().item()).encode())
    return digest.hexdigest()


@torch.no_grad()
def label_embeddings(model, names, now: str | None = None) -> Tensor:
    r"""``model.label_embeddings(names)`` (K, D), from memory where nothing has changed; not to be written to.

    ``now`` is ``state(model)`` where it is known, as that goes through all weights. Raises what ``label_embeddings``
    raises.
    """
    kept, now = _kept.setdefault(model, OrderedDict()), now or state(model)
    for old in [old for old in kept if old[0] != now]:
        del kept[old]
    key = now, tuple(names)
    t = kept.pop(key) if key in kept else model.label_embeddings(list(names))
    if t.numel() <= ENTRIES:
        kept[key] = t
    while len(kept) > LISTS or sum(x.numel() for x in kept.values()) > ENTRIES:
        kept.popitem(last=False)
    return t

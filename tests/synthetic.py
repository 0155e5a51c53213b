"""A small HRCF with random weights and random frozen features: training without data or weights."""

import os
import signal
from zlib import crc32

import numpy as np
import torch
from torch.testing import assert_close

from hrcf_lib import config as configs
from hrcf_lib import training, vlp
from hrcf_lib.data.feeds.features import FrozenFeatures
from hrcf_lib.labels import LabelSpace
from hrcf_lib.model import HRCF
from hrcf_lib.training import train

SPACE = LabelSpace(seen=["cat", "dog", "bus", "sun", "tree"], unseen=["boat", "sea"])
PHASES = (("hcg", 2, 4), ("prompts", 1, 4), ("hcg", 1, 4))  # of 10 pictures: 6 + 3 + 3 steps


def config(**changes) -> configs.Config:
    ready = {"phases": PHASES, "lr": 1e-3, "warmup_epochs": 0.5, "bf16": False, "ks": (1, 2)} | changes
    return configs.mini().replace(**ready)


def model(**changes) -> HRCF:
    return HRCF(config(**changes), pretrained=False)


def telling_model(**changes) -> HRCF:
    """In evaluation mode, with random weights whose regions tell labels apart."""
    made = model(**changes).eval()
    with torch.no_grad():
        made.gather.conv2.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))  # the same in any order
    return made


def invented_mini(path, words: str) -> None:
    """Write weights of a mini VLP that are made up and stay so, whatever ships; it knows the tokens of ``words``."""
    made = vlp.create_mini()
    with torch.no_grad():
        for name, value in made.model.state_dict().items():
            if value.is_floating_point():
                drawn = np.random.default_rng(crc32(name.encode())).standard_normal(value.shape, dtype=np.float32)
                around_one = value.ndim == 1 and name.endswith(("weight", "running_var"))
                value.copy_(torch.as_tensor(1 + 0.1 * np.abs(drawn) if around_one else 0.09 * drawn))
    vlp.save_mini_weights(made, path, torch.tensor(made.tokenizer.encode(words)))


class Fitted(dict):
    """name -> (method, its weights before, history), each trained once, when it is first asked for."""

    def __init__(self, build, features):
        self.build, self.features = build, features

    def __missing__(self, name):
        made = self.build(name)
        self[name] = made, weights(made), train(made, self.features())
        return self[name]


def features(n: int = 10, seed: int = 0, space: LabelSpace = SPACE) -> FrozenFeatures:
    """Features of the mini VLP's shapes; each picture has at least one positive seen label."""
    rng = np.random.default_rng(seed)
    trunk = rng.standard_normal((n, 197, 128), dtype=np.float32).astype(np.float16)
    teacher = torch.from_numpy(rng.standard_normal((n, 128), dtype=np.float32))
    labels = torch.from_numpy(np.where(rng.uniform(size=(n, len(space.names))) < 0.3, 1.0, -1.0)).float()
    labels[torch.arange(n), torch.arange(n) % space.n_seen] = 1
    return FrozenFeatures(trunk, teacher, labels, space)


def die_at_step(number: int) -> None:
    """From now on training kills its own process as it begins the step of that number."""
    step, count = training._step, 0

    def step_or_die(*arguments):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments)

    training._step = step_or_die


def weights(model) -> dict[str, torch.Tensor]:
    """A copy of all weights, the frozen ones too."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict, b: dict, prefix: str = "") -> bool:
    """Whether two sets of weights agree bit for bit, in the parameters whose name starts with ``prefix``."""
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a if name.startswith(prefix))


def assert_known_pairs_suffice(model, held, y, names) -> None:
    """The loss that a method for missing labels computes of known pairs alone, and its gradients, are those of all."""
    own = [p for n, p in model.named_parameters() if not n.startswith("vlp.")]
    t = model.label_embeddings(names)
    fast = model.losses(*held, t, y, held[0])["classification"]
    slow = model.classification(model.score_embeddings(*held, t).sigmoid(), y)
    assert_close(fast, slow)
    both = [torch.autograd.grad(loss, own, retain_graph=True) for loss in (fast, slow)]
    for a, b in zip(*both, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-6)

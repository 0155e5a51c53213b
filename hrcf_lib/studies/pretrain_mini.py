r"""How the mini VLP is made: contrastive pre-training on pictures and captions that name a little of what they show.

The recipe is CLIP's at the size of a laptop. Each step draws ``batch`` different labels of the whole vocabulary, paints
a picture of each, with a caption (``data.mojiscenes.captions``), and minimises the symmetric cross-entropy of CLIP
(Radford et al., 2021) between pictures and captions. Like CLIP, the model learns *what a picture is of*, not *all that
is in it*. A caption that happens to be true of another picture of the batch, as "an animal" is of a dog, is no negative
of it: at 160 pictures that would be the rule, in CLIP's batches of 32,768 web pages it is the exception.

Two stages: *small* pictures of 56 px on a random 7 x 7 window of the 14 x 14 grid (49 tokens), then the full 112 px
with most patches dropped (Li et al., FLIP, 2023), at last with all. Portraits give way to crowds on the way.

A second loss of the same form asks the *patch* tokens: the score of a caption is a smooth maximum over patches
(token-wise matching as in FILIP, Yao et al., 2022). CLIP's patch tokens are known to represent what they show without
this, at a scale that no laptop reaches; a small VLP's do not. A third keeps the cones of pictures and of captions as
wide as CLIP's (``cone_loss``), which come about by themselves there.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from hrcf_lib.data.mojiscenes import vocabulary
from hrcf_lib.data.mojiscenes.captions import crowd, portrait
from hrcf_lib.engine.files import make_folder
from hrcf_lib.engine.weights import read_checkpoint, save_checkpoint
from hrcf_lib.vlp import VLP, create_mini, encode_tokens

SIDE, SMALL_SIDE = 112, 56  # pixels of a picture, and of one in the first stage
SIZE, SMALL_SIZE = (0.2, 0.95), (0.35, 0.98)  # smallest and largest share of the side that a portrait takes
PATCH, GRID = 8, 14  # pixels and number of patches along a side
STREAM = 8  # last entry of the seeds of training pictures: [step, seed, STREAM]; test pictures use other streams
LAST_SHARE = 0.01  # of the peak learning rate, at the end of a cosine


@dataclass(frozen=True)
class PretrainConfig:
    """Recipe of the shipped mini VLP; a step is one batch."""

    steps_small: int = 2600  # steps at 56 px
    steps_full: int = 1000  # steps at 112 px
    alone: int = 400  # first steps, with portraits without distractors, and the first of the three losses alone
    crowds_small: float = 0.3  # share of crowds at 56 px
    crowds_full: float = 0.5  # share of crowds at 112 px
    batch: int = 160  # different labels a step
    lr: float = 2e-3  # peak of a warm-up and a cosine over both stages
    warmup: int = 200  # steps
    weight_decay: float = 0.1  # 0 on 1-D parameters
    distractors: float = 0.5  # share of portraits that also show 1 or 2 small, unnamed things
    fade: float = 0.65  # colour fills lose up to this much of their opacity
    cone: float = 1.0  # weight of the third loss
    keep_patches: float = 0.35  # share of the 196 patches that a 112 px picture keeps in training
    final_steps: int = 60  # last steps, with all patches
    save_every: int = 100  # steps between two checkpoints
    workers: int = 1  # processes that paint
    seed: int = 0

    @property
    def total(self) -> int:
        """Steps of both stages."""
        return self.steps_small + self.steps_full


class CaptionedBatches(Dataset):
    r"""Step number -> (pictures (batch, 3, side, side) uint8, captions, which captions hold (batch, batch) bool).

    A pure function of (step, seed). Row i, column j of the last says that all labels that caption j names hold in
    picture i.
    """

    def __init__(self, config: PretrainConfig, first: int = 0):
        self.config, self.first, self.names = config, first, vocabulary.names()
        self.column = {name: k for k, name in enumerate(self.names)}

    def __len__(self):
        return self.config.total - self.first

    def __getitem__(self, item):
        c, step = self.config, self.first + item
        rng = np.random.default_rng([step, c.seed, STREAM])
        small = step < c.steps_small
        side, size = (SMALL_SIDE, SMALL_SIZE) if small else (SIDE, SIZE)
        crowds = 0.0 if step < c.alone else c.crowds_small if small else c.crowds_full
        distractors = c.distractors * (step >= c.alone)
        drawn = []
        for k in rng.choice(len(self.names), min(c.batch, len(self.names)), replace=False):
            if rng.uniform() < crowds:
                drawn.append(crowd(rng, self.names[k], side, fade=c.fade))
            else:
                drawn.append(portrait(rng, self.names[k], side, size, distractors, c.fade))
        holds, named = np.zeros((2, len(drawn), len(self.names)), np.float32)
        for i, picture in enumerate(drawn):
            holds[i, [self.column[name] for name in picture.labels]] = 1
            named[i, [self.column[name] for name in picture.named]] = 1
        true = torch.from_numpy((1 - holds) @ named.T == 0)  # (batch, batch): no named label is missing
        return torch.from_numpy(np.stack([p.image for p in drawn])), [p.caption for p in drawn], true


def image_features(model, images, keep=None, offset=(0, 0)):
    """Class-token embeddings (B, D) and patch embeddings (B, n, D) of normalised images.

    The grid of the images may be a window of the model's own.
    ``offset``: row and column of the window's first patch; ``keep``: indices of the patches to keep (patch dropout).
    """
    v = model.visual
    x = v.conv1(images)  # (B, C, n, n)
    n, grid = x.shape[-1], v.grid_size[0]
    position = v.positional_embedding[1:].view(grid, grid, -1)
    position = position[offset[0] : offset[0] + n, offset[1] : offset[1] + n].reshape(n * n, -1)
    x = x.flatten(2).transpose(1, 2) + position  # (B, n*n, C)
    if keep is not None:
        x = x[:, keep]
    cls = (v.class_embedding + v.positional_embedding[0]).expand(len(x), 1, -1)
    x = v.transformer(v.ln_pre(torch.cat([cls, x], dim=1)))
    x = v.ln_post(x) @ v.proj  # (B, 1 + n, D)
    return x[:, 0], x[:, 1:]


def text_features(model, tokens):
    """Caption embeddings (B, D); tokens after the longest caption are never computed (the tower is causal)."""
    last = tokens.argmax(dim=-1)  # the end token has the highest id
    tokens = tokens[:, : int(last.max()) + 1]
    return encode_tokens(model, model.token_embedding(tokens), last)


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then a cosine to 1 % of the peak, over both stages.

    Not ``engine.schedules.learning_rate``, of which the first step of a warm-up has a rate of 0.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.total - config.warmup)
    return config.lr * (LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * progress)))


def global_logits(model, x, t):
    """Cosines of pictures and captions (B, D) times the learnt scale: (B, B)."""
    return model.logit_scale.exp() * F.normalize(x.float(), dim=-1) @ F.normalize(t.float(), dim=-1).T


def patch_logits(model, patches, t):
    """(B, n, D), (B, D) -> (B, B): each caption's smooth maximum, log mean exp, over the patches of each picture."""
    return global_logits(model, patches, t).logsumexp(dim=1) - math.log(patches.shape[1])


def contrastive_loss(logits, true=None):
    r"""CLIP's symmetric cross-entropy of (B, B) logits, and the share of pictures whose own caption scores highest.

    ``true`` (B, B) bool: captions that hold of a picture, which are left out of its negatives but for its own.
    """
    target = torch.arange(len(logits))
    if true is not None:
        logits = logits.masked_fill(true & ~torch.eye(len(logits), dtype=torch.bool), -torch.inf)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.argmax(1) == target).float().mean()


def cone_loss(x, t):
    r"""How far embeddings (B, D) of pictures and captions are from lying as CLIP's do: 0 where they do.

    $$(\overline{\cos}(x, x') - 0.52)^2 + (\overline{\cos}(t, t') - 0.7)^2 + (\rho / 10 - 1)^2$$

    with the mean cosines of pairs, and rho, the mean over a picture's scores divided by their deviation. CLIP has 0.52
    for photographs, 0.765 for labels in one prompt (captions, whose wording differs, are less alike) and 10.
    """
    x, t = F.normalize(x.float(), dim=-1), F.normalize(t.float(), dim=-1)
    s = x @ t.T
    rho = (s.mean(1) / s.std(1)).mean()
    return (x.mean(0).square().sum() - 0.52) ** 2 + (t.mean(0).square().sum() - 0.7) ** 2 + (rho / 10 - 1) ** 2


def pretrain(config: PretrainConfig, folder: str | Path, log=print, budget: float = float("inf")) -> VLP:
    """Train the mini VLP; an interrupted run continues from the checkpoint in ``folder``.

    After ``budget`` seconds training stops and a checkpoint is written. Returns the VLP with ``history`` (rows of step,
    loss, batch top-1) and ``seconds``; ``mini_vlp.like_clip`` is a separate step.
    """
    folder = make_folder(folder)
    checkpoint = folder / "pretrain.pt"
    torch.manual_seed(config.seed)
    vlp = create_mini()
    model = vlp.model.train()
    decay = [p for p in model.parameters() if p.ndim > 1]
    flat = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": flat, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)
    first, history, spent = 0, [], 0.0
    if checkpoint.exists():
        state = read_checkpoint(checkpoint, ("config", "model", "optimizer", "step", "history", "seconds"))
        if state["config"] != repr(config):
            raise ValueError(f"{checkpoint} was written with another recipe: remove it, or choose another folder")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, history, spent = state["step"], state["history"], state["seconds"]
    generator = torch.Generator()
    batches = DataLoader(
        CaptionedBatches(config, first),
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
    )
    start, mean, std = time.time(), vlp.mean, vlp.std
    for step, (images, captions, true) in enumerate(batches, start=first):
        generator.manual_seed(step * 1000 + config.seed)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        keep, offset, total = None, (0, 0), config.total
        if images.shape[-1] < SIDE:
            spare = GRID - images.shape[-1] // PATCH
            offset = torch.randint(0, spare + 1, (2,), generator=generator).tolist()
        elif step < total - config.final_steps:
            keep = torch.randperm(GRID**2, generator=generator)[: int(GRID**2 * config.keep_patches)]
        tokens = vlp.tokenizer(captions)
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # beats flash at 50 tokens
            x, patches = image_features(model, (images.float() / 255 - mean) / std, keep, offset)
            t = text_features(model, tokens)
        loss, correct = contrastive_loss(global_logits(model, x, t), true)
        if step >= config.alone:
            loss = loss + contrastive_loss(patch_logits(model, patches, t), true)[0] + config.cone * cone_loss(x, t)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        history.append((step, float(loss.detach()), float(correct)))
        stop = time.time() - start > budget
        if (step + 1) % config.save_every == 0 or step + 1 == total or stop:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "history": history,
                "config": repr(config),
                "seconds": spent + time.time() - start,
            }
            save_checkpoint(state, checkpoint)
            recent = np.mean([h[1:] for h in history[-config.save_every :]], axis=0)
            seconds = spent + time.time() - start
            log(f"step {step + 1}/{total}  loss {recent[0]:.3f}  batch top-1 {recent[1]:.3f}  {seconds:.0f} s")
        if stop:
            break
    vlp.history, vlp.seconds = history, spent + time.time() - start
    model.eval()
    return vlp

r"""How the mini VLP is made: contrastive pre-training on pictures and captions that name one thing in them.

The recipe is CLIP's at the size of a laptop. Each step draws ``batch`` different concepts (one caption per concept, so
no caption appears twice), paints a picture of each, and minimises the symmetric cross-entropy of CLIP (Radford et al.,
2021) between pictures and captions. Like CLIP, the model learns *what a picture is of*, not *all that is in it*. There
are three stages: *portraits* of one dominant thing (small things beside it are painted but never named) at 56 px on a
random 7 x 7 window of the 14 x 14 grid (49 tokens, four times cheaper); the same at the full 112 px; then *crowds*,
whose captions name one of several things, the large ones more often. The third stage trains the *patch* tokens too: the
score of a caption is a smooth maximum over patches (token-wise matching as in FILIP, Yao et al., 2022). CLIP's patch
tokens are known to represent what they show without this, at a scale that no laptop reaches; a small VLP's do not.
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

from hrcf_lib.data.mojiscenes.portraits import concepts, crowd, portrait
from hrcf_lib.engine.weights import read_checkpoint, save_checkpoint
from hrcf_lib.vlp import VLP, create_mini, encode_tokens

SIDE, SMALL_SIDE = 112, 56  # pixels of a picture, and of one in the first stage
SIZE, SMALL_SIZE = (0.2, 0.95), (0.35, 0.98)  # smallest and largest share of the side that a portrait takes
PATCH, GRID = 8, 14  # pixels and number of patches along a side
STREAM = 7  # last entry of the seeds of training pictures: [step, seed, STREAM]; test pictures use other streams
ALONE = 500  # first steps, whose portraits have no distractors
LAST_SHARE = 0.01  # of the peak learning rate, at the end of a cosine


@dataclass(frozen=True)
class PretrainConfig:
    """Recipe of the shipped mini VLP; a step is one batch."""

    steps_small: int = 2000  # steps at 56 px
    steps_full: int = 1000  # steps at 112 px
    batch: int = 160  # different concepts a step
    lr: float = 2e-3  # peak of one warm-up and one cosine over both stages
    warmup: int = 200  # steps
    weight_decay: float = 0.1  # 0 on 1-D parameters
    distractors: float = 0.5  # share of pictures that also show 1 or 2 small, unnamed things
    fade: float = 0.65  # colour fills are painted with an opacity in [1 - fade, 1]
    keep_patches: float = 0.4  # share of the 196 patches that a 112 px picture keeps in training
    final_steps: int = 100  # last steps of the second stage, with all patches
    steps_crowds: int = 1500  # third stage
    lr_crowds: float = 1e-3  # its own peak of its own warm-up and cosine
    warmup_crowds: int = 40  # steps
    final_crowds: int = 40  # its last steps, with all patches
    save_every: int = 200  # steps between two checkpoints
    workers: int = 1  # processes that paint
    seed: int = 0

    @property
    def total(self) -> int:
        """Steps of all three stages."""
        return self.portraits + self.steps_crowds

    @property
    def portraits(self) -> int:
        """Steps of the first two stages."""
        return self.steps_small + self.steps_full

    def keeps_all(self, step: int) -> bool:
        """Whether a 112 px step sees all 196 patches."""
        return self.portraits - self.final_steps <= step < self.portraits or step >= self.total - self.final_crowds


class PortraitBatches(Dataset):
    """Step number -> (images (batch, 3, side, side) uint8, captions): a pure function of (step, seed)."""

    def __init__(self, config: PretrainConfig, first: int = 0):
        self.config, self.first = config, first

    def __len__(self):
        return self.config.total - self.first

    def __getitem__(self, item):
        c, step = self.config, self.first + item
        rng = np.random.default_rng([step, c.seed, STREAM])
        side, size = (SMALL_SIDE, SMALL_SIZE) if step < c.steps_small else (SIDE, SIZE)
        drawn = rng.choice(len(concepts()), min(c.batch, len(concepts())), replace=False)
        if step >= c.portraits:
            pictures = [crowd(rng, int(k), fade=c.fade) for k in drawn]
        else:
            pictures = [portrait(rng, int(k), side, size, c.distractors * (step > ALONE), c.fade) for k in drawn]
        return torch.from_numpy(np.stack([p.image for p in pictures])), [p.caption for p in pictures]


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
    """Linear warm-up, then a cosine to 1 % of the peak: once over the first two stages, once over the third.

    ``engine.schedules.learning_rate`` warms up from 0 and rounds otherwise: the shipped weights would change with it.
    """
    peak, warmup, total = config.lr, config.warmup, config.portraits
    if step >= total:
        step, peak, warmup, total = step - total, config.lr_crowds, config.warmup_crowds, config.steps_crowds
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * (LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * progress)))


def global_logits(model, x, t):
    """Cosines of pictures and captions (B, D) times the learnt scale: (B, B)."""
    return model.logit_scale.exp() * F.normalize(x.float(), dim=-1) @ F.normalize(t.float(), dim=-1).T


def patch_logits(model, patches, t):
    """(B, n, D), (B, D) -> (B, B): each caption's smooth maximum, log mean exp, over the patches of each picture."""
    return global_logits(model, patches, t).logsumexp(dim=1) - math.log(patches.shape[1])


def contrastive_loss(logits):
    """CLIP's symmetric cross-entropy of (B, B) logits, and the share of pictures whose own caption scores highest."""
    target = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.argmax(1) == target).float().mean()


def pretrain(config: PretrainConfig, folder: str | Path, log=print, budget: float = float("inf")) -> VLP:
    """Train the mini VLP; an interrupted run continues from the checkpoint in ``folder``.

    After ``budget`` seconds training stops and a checkpoint is written. Returns the VLP with ``history`` (rows of step,
    loss, batch top-1) and ``seconds``; ``mini_vlp.rescale`` is a separate step.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "pretrain.pt"
    torch.manual_seed(config.seed)
    vlp = create_mini()
    model = vlp.model.train()
    decay = [p for p in model.parameters() if p.ndim > 1]
    flat = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": flat, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
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
        PortraitBatches(config, first),
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
    )
    start, mean, std = time.time(), vlp.mean, vlp.std
    for step, (images, captions) in enumerate(batches, start=first):
        generator.manual_seed(step * 1000 + config.seed)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        keep, offset, total = None, (0, 0), config.total
        if images.shape[-1] < SIDE:
            spare = GRID - images.shape[-1] // PATCH
            offset = torch.randint(0, spare + 1, (2,), generator=generator).tolist()
        elif not config.keeps_all(step):
            keep = torch.randperm(GRID**2, generator=generator)[: int(GRID**2 * config.keep_patches)]
        tokens = vlp.tokenizer(captions)
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # beats flash at 50 tokens
            x, patches = image_features(model, (images.float() / 255 - mean) / std, keep, offset)
            t = text_features(model, tokens)
        loss, correct = contrastive_loss(global_logits(model, x, t))
        if step >= config.portraits:
            loss = loss + contrastive_loss(patch_logits(model, patches, t))[0]
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

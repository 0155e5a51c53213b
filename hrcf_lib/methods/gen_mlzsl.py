r"""Gen-MLZSL (Gupta et al., TPAMI 2023): features of label sets are made up, and a classifier is fitted to them.

A picture has a feature x of R numbers in 0..1 and a set of labels with vectors a_j, of mean a. A generator G makes a
feature of noise z and the set, by one of three fusions; g and h are two-layer networks of the same form:

$$u^A = \sigma(g(z, \bar a)), \qquad u^F = \frac1n \sum_j \sigma(h(z, a_j)) \tag{a, b}$$
$$X = [u^F; u^A], \qquad X \leftarrow O\, \mathrm{MHA}(X) + X, \qquad X \leftarrow \mathrm{FF}(X) + X, \qquad
  \hat u = \sigma\big( \tfrac12 (X_1 + X_2) \big) \tag{c}$$

``fusion="attribute"`` is (a) alone, ``"feature"`` (b) alone, ``"cross"`` all. A critic D and an encoder E train it:

$$L_D = \gamma \big( \overline{D(\hat u, \bar a)} - \overline{D(x, \bar a)} + \lambda\,
  \overline{(\lVert \nabla_{\tilde x} D(\tilde x, \bar a) \rVert - 1)^2} \big), \qquad
  \tilde x = \alpha x + (1 - \alpha) \hat u \tag{d}$$
$$L_G = \frac1B \Big( \sum \mathrm{BCE}(G(\mu + \epsilon e^{v/2}), x) - \tfrac12 \sum (1 + v - \mu^2 - e^v) \Big)
  - \gamma\, \overline{D(G(z), \bar a)}, \qquad (\mu, v) = E(x, \bar a) \tag{e}$$

Then, for a list of labels: sets of labels (``label_sets``), one made-up feature each, and a linear classifier of these
by the mean binary cross-entropy. Its logits are the scores:

$$s_k = w_k \cdot x + b_k \tag{f}$$

Letters are ours. The paper [P] was at hand as abstract and opening; what follows from its released code (GPL-3.0) was
written from a description of it, and from numbers that it computes [C]; [S] is silent, and ours.

**Released attention** (``released=True`` [C]): two tokens of R numbers are viewed as 8 heads without the transposition
that heads need. Each head then holds two neighbouring eighths of one and the same token, so levels never attend to each
other; they mix where the heads are laid side by side again, and in O. ``released=False`` is the evident intent: each
head holds an eighth of both tokens. The default is what the printed numbers come from.

**Where the harness bends.**

* *Two optimisers.* The released code takes 5 steps of the critic, each on a batch of its own, then one of generator and
  encoder on the last of these. A step of ``train`` updates once, on one batch: here steps go in rounds of
  ``critic_steps`` + 1, and the last one of a round is the generator's, on a batch of its own. ``before_step`` opens the
  parameters of the one and closes those of the other; Adam skips what has no gradient, so that one Adam whose groups
  have a beta1 of their own (E 0.9, others 0.5) does what two would. The parts of the loss that are not of a step's turn
  are 0 in the history.
* *A budget of passes.* The code passes 350 times over the pictures (70 epochs of 5). All methods here have HRCF's
  number of passes, some hundreds of steps in the presets of the mini VLP; ``phases`` sets more, and steps are cheap.
* *A classifier for a list of labels.* ``label_embeddings(names)`` fits it in evaluation mode and returns (K, R + 1):
  weights and bias. **So the score of a label depends on the whole list it is scored in**, and the first score of a list
  costs a fit: seconds on the mini VLP, far more at full size. Lists are kept by their names, in any order; the fit
  draws from ``config.seed`` alone. In training mode it returns the label vectors, which the networks are conditioned
  on.
* *What is kept.* Sets of labels of the training pictures and the range of each feature are buffers, taken in ``begin``
  and saved with the weights. A model that was never trained takes each label of the list as a set.

**Sets** for a list [C]: the training sets as they are; half of them with each label replaced by the nearest label of
the list that is not seen; and half of them mixed. A list without a seen label takes the replaced ones alone, as the
released code's ZSL classifier. Labels that no set has are added to some (``fill``); a set that grows beyond ``slots``
keeps its part (b), which the code then loses [S]. A set with labels outside the list is made with all of them, and only
those of the list are learnt; where a label of the list is in every set, as in a list of one, the training sets as they
are join [S].

**Here** x is e_p, each entry scaled by its range in training (R = D; the code has R = 4,096 of VGG-19), so heads must
divide D. Test features may leave 0..1 [C], unless ``clamp``. The BCE is a sum over features, 8 times smaller against
gamma for R = 512. Label vectors have unit length; CLIP's lie in a cone: ``centred`` takes off the mean of the seen
ones. Pictures with more than ``slots`` labels take no part. Nothing is chosen on test, as it is there [C].
"""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from hrcf_lib.config import setting
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.labels import check_names
from hrcf_lib.method import Method, finite
from hrcf_lib.methods import word_vectors
from hrcf_lib.methods.settings import WordVectorConfig

FUSIONS = ("cross", "attribute", "feature")  # CLF, ALF, FLF
ABLATIONS = {  # name of a row -> changes of the config, for ``studies.run_all``; the paper's tables were not at hand
    "CLF, as released": {},
    "CLF, as meant": {"released": False},
    "ALF": {"fusion": "attribute"},
    "FLF": {"fusion": "feature"},
    "without the encoder": {"reconstruction": 0.0},
}
SLOPE = 0.2  # of the leaky ReLU
DROP = 0.1  # dropout of the fusion's attention, on its weights and its output
SPREAD = 0.02  # deviation of the normal numbers that layers start from
BETA1, BETA1_ENCODER = 0.5, 0.9  # of Adam
KEPT = 16  # lists of labels whose classifiers are kept
AT_A_TIME = 1024  # sets that features are made of together


def afterwards(default, **about):
    """A setting of the classifiers alone, which are fitted behind the training."""
    return setting(default, weights=False, scores=True, **about)


@dataclass(frozen=True)
class GenMLZSLConfig(WordVectorConfig):
    """Default values of the released script for NUS-WIDE."""

    method = "gen_mlzsl"
    small = {"hidden": 256, "lr": 3e-3, "critic_steps": 1, "centred": True, "classifier_epochs": 20}

    released: bool = setting(True, scores=True)  # heads that never look at both levels; off: the evident intent
    fusion: str = setting("cross", choices=FUSIONS, scores=True)
    hidden: int = setting(4096, low=1, high=65_536)  # width inside G, D and E; the fusion's FF has twice as much
    heads: int = setting(8, low=1, high=1_024, scores=True)
    slots: int = setting(10, low=1, high=10_000)  # N, most labels of a picture that takes part
    critic_steps: int = setting(5, low=1, high=1_000)  # for one of the generator
    gamma: float = 10.0  # weight of the critic, in both losses; above 0
    penalty: float = 10.0  # lambda of the gradient penalty
    reconstruction: float = 1.0  # weight of the encoder's loss; 0: the GAN alone
    centred: bool = setting(False, scores=True)  # label vectors without the mean of the seen ones (ours)
    clamp: bool = setting(False, scores=True, weights=False)  # test features to 0..1 (ours)
    optimizer: str = "adam"
    lr: float = 1e-4
    weight_decay: float = 0.0

    as_they_are: float = afterwards(1.0, high=1)  # share of the training sets
    replaced: float = afterwards(0.5, high=1)  # share whose labels are replaced by the nearest of the list
    mixed: float = afterwards(0.5, high=1)  # share of which half the labels are
    synthetic: int | None = afterwards(None, low=1)  # most sets for a list, drawn at random; None: all (ours)
    classifier_epochs: int = afterwards(50, low=1, high=100_000)
    classifier_batch: int = afterwards(300, low=1, high=1_000_000)
    classifier_lr: float = afterwards(1e-3)

    def __post_init__(self):
        super().__post_init__()
        if not self.gamma:
            raise ValueError("gamma = 0: the critic's steps would have no loss; give a number above 0")
        if not (self.as_they_are and self.replaced):
            raise ValueError(
                f"as_they_are = {self.as_they_are}, replaced = {self.replaced}: one of them alone makes the sets of "
                "a list with, or without, seen labels; give shares above 0"
            )


class GenMLZSL(Method):
    """What learns are ``generator``, ``encoder`` and ``critic``; scores are of a classifier fitted to a list."""

    title, Config = "Gen-MLZSL", GenMLZSLConfig
    about = "Gen-MLZSL (Gupta et al., TPAMI 2023): classifiers fitted to features made up for sets of labels."
    trainable = {"images": ("generator.", "encoder.", "critic."), "prompts": ()}
    trained_blocks = 0
    idle_parameters = True
    fits_labels, independent_labels = True, True  # behind the fit

    def build(self) -> None:
        """The three networks, and buffers for what is taken from the training data.

        Raises ``ValueError`` if ``heads`` do not divide the VLP's D.
        """
        c, R = self.config, self.vlp.D
        if R % c.heads:
            raise ValueError(f"heads = {c.heads} of features of {R} numbers: choose a divisor of {R}")
        d = word_vectors.label_width(self.vlp, c)
        self.generator = Generator(R, d, c.hidden, 2 * c.hidden, c.heads, c.released, c.fusion)
        self.encoder, self.critic = Encoder(R, d, c.hidden), Critic(R, d, c.hidden)
        self.register_buffer("low", torch.zeros(R))  # of each entry of e_p in training
        self.register_buffer("high", torch.ones(R))
        self.register_buffer("sets", torch.empty(0, 0, dtype=torch.int32))  # (n, L) seen labels of pictures, -1: none
        self.critics_turn = True
        self.classifiers: dict[tuple, Tensor] = {}  # what a fit depends on -> (K, R + 1), labels sorted

    # Training ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin(self, data) -> None:
        """One pass over the usable pictures, not augmented: the range of each entry of e_p, and the sets of labels."""
        order, columns, training = BatchOrder(64), data.space.columns("seen"), self.training
        found, sets = [], []
        self.eval()
        show = tqdm(data.batches(order), "training features", order.steps(len(data)), disable=None, leave=False)
        for _, inputs, labels in show:
            labels = labels[:, columns]
            kept = self.usable(labels)
            e_p = self.vlp.teacher(data.frozen(self.vlp, inputs, self.config.bf16)[0])[kept.to(self.low.device)]
            if len(e_p):
                found.append(torch.stack([e_p.amin(dim=0), e_p.amax(dim=0)]).float())  # (2, R)
                sets.append(as_indices(labels[kept] == 1, self.config.slots))
        self.train(training)
        if not sets:
            raise ValueError(f"no picture has 1 to {self.config.slots} positive labels: raise slots")
        ranges = torch.stack(found)  # (batches, 2, R)
        self.low.copy_(ranges[:, 0].amin(dim=0))
        self.high.copy_(ranges[:, 1].amax(dim=0))
        self.sets = torch.cat(sets).to(self.low.device, torch.int32)  # (n, slots)

    def usable(self, labels: Tensor) -> Tensor:
        """Pictures with 1 to ``slots`` positive labels: (B, K) -> (B,) bool."""
        number = (labels == 1).sum(dim=1)
        return (number > 0) & (number <= self.config.slots)

    def before_step(self, step: int) -> None:
        """The last step of a round is of generator and encoder, all others are the critic's."""
        self.critics_turn = step % (self.config.critic_steps + 1) != 0
        self.critic.requires_grad_(self.critics_turn)
        for part in (self.generator, self.encoder):
            part.requires_grad_(not self.critics_turn)

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The parts of Eq. d in the critic's turn, those of Eq. e in the generator's; the others are 0.

        ``e_g`` (B, R) are scaled features, ``t`` (K, d) label vectors. Raises ``FloatingPointError`` for made-up
        features that are not finite.
        """
        x, present = e_g.clamp(0, 1), labels == 1  # (B, R), (B, K)
        a = mean_vectors(t, present)  # (B, d)
        z = torch.randn_like(a)
        parts = dict.fromkeys(PARTS, x.new_zeros(()))
        if self.critics_turn:
            with torch.no_grad():
                fake = self.generator(z, t, present)  # (B, R)
            alpha = torch.rand(len(x), 1, device=x.device)
            parts["wasserstein"] = self.critic(fake, a).mean() - self.critic(x, a).mean()  # Eq. d
            parts["penalty"] = self.config.penalty * gradient_penalty(self.critic, x, fake, a, alpha)  # Eq. d
            return parts
        mean, log_variance = self.encoder(x, a)  # (B, d) x 2
        made = finite(self.generator(latent(mean, log_variance, torch.randn_like(a)), t, present))  # (B, R)
        parts["reconstruction"] = reconstruction_loss(made, x, mean, log_variance)  # Eq. e
        parts["adversarial"] = -self.critic(finite(self.generator(z, t, present)), a).mean()  # Eq. e
        return parts

    def summed(self) -> set[str]:
        """None: all parts are means over the pictures."""
        return set()

    def weights(self, side: str) -> dict[str, float]:
        """Eqs. d and e."""
        c = self.config
        return dict(zip(PARTS, (c.gamma, c.gamma, c.reconstruction, c.gamma)))

    def groups(self, side: str) -> list[dict]:
        """As in every method, with a ``beta1`` of its own for the encoder."""
        return [
            group | {"names": [n for n, _ in own], "params": [p for _, p in own], "betas": (beta1, 0.999)}
            for group in super().groups(side)
            for beta1, encoder in ((BETA1, False), (BETA1_ENCODER, True))
            if (own := [np for np in zip(group["names"], group["params"]) if np[0].startswith("encoder.") == encoder])
        ]

    def load_trainable(self, state: dict[str, Tensor], source) -> None:
        """As in every method; there are as many sets of labels as were saved."""
        if "sets" in state and state["sets"].ndim == 2:
            self.sets = self.sets.new_empty(state["sets"].shape)
        super().load_trainable(state, source)

    # Scores -----------------------------------------------------------------------------------------------------------

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) of the whole image tower -> x (B, R), which is e_p scaled, and no regions."""
        e_p = self.vlp.teacher(trunk)  # (B, R)
        span = (self.high - self.low).where(self.high > self.low, 1.0)  # an entry that never changes becomes 0
        x = (e_p - self.low) / span
        x = x.clamp(0, 1) if self.config.clamp else x
        return x, x[:, None][:, :0]

    def conditions(self, names) -> Tensor:
        """(K, d): what the networks are told of labels, of unit length, never trained.

        Raises as ``word_vectors.unit_vectors``.
        """
        t = word_vectors.unit_vectors(self.vlp, names, self.config)
        if self.config.centred and self.reference_labels:
            seen = word_vectors.unit_vectors(self.vlp, self.reference_labels, self.config)
            t = F.normalize(t - seen.mean(dim=0), dim=1)
        return t

    def label_embeddings(self, names) -> Tensor:
        """In evaluation mode the classifier (K, R + 1) of this list of labels, fitted if it is asked for anew; in
        training mode ``conditions`` (K, d). Raises as these.
        """
        names = check_names(names)
        if self.training:
            return self.conditions(names)
        ordered = sorted(names)
        key = (tuple(ordered), self.reference_labels, self.config, self._digest())
        if key not in self.classifiers:
            if len(self.classifiers) >= KEPT:
                del self.classifiers[next(iter(self.classifiers))]  # the oldest
            self.classifiers[key] = self.fit(ordered)
        at = {name: k for k, name in enumerate(ordered)}
        return self.classifiers[key][[at[name] for name in names]]

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """x (B, R), no regions, a classifier (K, R + 1) -> logits (B, K). Raises ``ValueError`` for another width."""
        R = e_g.shape[1]
        if label_embeddings.shape[1] != R + 1:
            raise ValueError(
                f"label embeddings of width {label_embeddings.shape[1]} are no classifier of {R} features and a bias: "
                "take those that label_embeddings gives in evaluation mode (model.eval())"
            )
        return e_g @ label_embeddings[:, :R].T + label_embeddings[:, R]  # Eq. f

    @torch.no_grad()
    def fit(self, names: list[str]) -> Tensor:
        """The classifier (K, R + 1) of a list of labels: sets, a made-up feature for each, a linear layer.

        Everything is drawn from ``config.seed``. Raises as ``conditions``.
        """
        c, dice, device = self.config, torch.Generator().manual_seed(self.config.seed), self.low.device
        seen = self.reference_labels if len(self.sets) else ()
        vocabulary = [*seen, *sorted(set(names) - set(seen))]
        t = self.conditions(vocabulary)  # (V, d)
        column = {name: v for v, name in enumerate(vocabulary)}
        asked = torch.tensor([column[name] for name in names])  # (K,)
        sets = self._sets_for(t, asked, len(seen), dice)  # (n, L)
        if c.synthetic is not None and len(sets) > c.synthetic:
            sets = sets[torch.randperm(len(sets), generator=dice)[: c.synthetic].sort().values]
        x = []
        for part in tqdm(sets.split(AT_A_TIME), "features of label sets", disable=None, leave=False):
            z = torch.randn(len(part), t.shape[1], generator=dice).to(device)
            x.append(self.generator(z, t, as_mask(part, len(vocabulary)).to(device)))
        y = lambda rows: as_mask(sets[rows], len(vocabulary))[:, asked]
        return fit_classifier(torch.cat(x), y, c.classifier_epochs, c.classifier_batch, c.classifier_lr, dice)

    def _sets_for(self, t: Tensor, asked: Tensor, seen: int, dice) -> Tensor:
        """Sets (n, L) over a vocabulary with vectors ``t`` (V, d), whose first ``seen`` labels have training sets."""
        c = self.config
        if not seen:
            sets = asked[:, None]  # each label alone
            return sets if len(asked) > 1 else torch.cat([sets, torch.full_like(sets, -1)])
        own, new = self.sets.cpu().long(), asked[asked >= seen]
        nearest = new[nearest_labels(t[:seen], t[new.to(t.device)]).cpu()] if len(new) else None
        if (asked < seen).any():
            shares = (c.as_they_are, c.replaced, c.mixed)
        else:
            shares = (0.0, c.replaced, 0.0)
        sets = torch.cat(label_sets(own, nearest, *shares, dice))
        sets = fill(sets, asked, asked >= seen, dice)
        return joined(sets, own) if (counts(sets, asked) == len(sets)).any() else sets

    def _digest(self) -> str:
        """Of all weights and buffers that a classifier depends on."""
        digest = hashlib.sha256()
        for value in (*self.generator.state_dict().values(), self.sets):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


PARTS = ("wasserstein", "penalty", "reconstruction", "adversarial")  # of the losses


# Networks -------------------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    r"""Features of label sets.

    Args:
        features: R, numbers of a feature, a multiple of ``heads``.
        width: d of a label vector, and of the noise.
        hidden: width inside g and h.
        inner: width inside FF.
        heads, released, fusion: as in ``GenMLZSLConfig``.
    """

    def __init__(self, features: int, width: int, hidden: int, inner: int, heads: int, released=True, fusion="cross"):
        super().__init__()
        self.fusion = fusion
        self.early = two_layers(2 * width, hidden, features) if self.fusion != "feature" else None  # g
        self.late = two_layers(2 * width, hidden, features) if self.fusion != "attribute" else None  # h
        self.attention = LevelAttention(features, heads, released) if self.fusion == "cross" else None
        self.network = two_layers(features, inner, features) if self.fusion == "cross" else None  # FF

    def forward(self, z: Tensor, t: Tensor, present: Tensor) -> Tensor:
        """Noise (B, d), label vectors (K, d), sets (B, K) bool -> features (B, R), in 0..1."""
        if self.fusion == "attribute":
            return self.attribute_level(z, t, present)
        if self.fusion == "feature":
            return self.feature_level(z, t, present)
        X = torch.stack([self.feature_level(z, t, present), self.attribute_level(z, t, present)], dim=1)  # (B, 2, R)
        X = self.attention(X)
        return (self.network(X) + X).mean(dim=1).sigmoid()  # (B, R)  Eq. c

    def attribute_level(self, z: Tensor, t: Tensor, present: Tensor) -> Tensor:
        """One feature of the mean label vector: (B, R)."""
        return self.early(torch.cat([z, mean_vectors(t, present)], dim=1)).sigmoid()  # Eq. a

    def feature_level(self, z: Tensor, t: Tensor, present: Tensor) -> Tensor:
        """The mean of one feature for each label, all of the same noise: (B, R); 0 for a set without labels."""
        row, label = present.nonzero(as_tuple=True)  # (n,) x 2
        u = self.late(torch.cat([z[row], t[label]], dim=1)).sigmoid()  # (n, R)
        total = u.new_zeros(len(z), u.shape[1]).index_add(0, row, u)  # (B, R)
        return total / present.sum(dim=1, keepdim=True).clamp(min=1)  # Eq. b


class LevelAttention(nn.Module):
    """Attention between the two levels of fusion, with a short cut: (B, 2, R) -> (B, 2, R)."""

    def __init__(self, features: int, heads: int, released: bool):
        super().__init__()
        self.heads, self.released = heads, released
        self.query, self.key, self.value, self.out = (nn.Linear(features, features, bias=False) for _ in range(4))

    def forward(self, X: Tensor) -> Tensor:
        """Eq. c."""
        weight = F.dropout(self.likeness(X).softmax(dim=3), DROP, self.training)  # (B, H, 2, 2)
        found = (weight @ self.split(self.value(X))).transpose(1, 2).flatten(2)  # (B, 2, R)
        return F.dropout(self.out(found), DROP, self.training) + X

    def likeness(self, X: Tensor) -> Tensor:
        """How much each half of a head asks for each, before the softmax: (B, 2, R) -> (B, H, 2, 2)."""
        q, k = self.split(self.query(X)), self.split(self.key(X))  # (B, H, 2, R / H)
        return q @ k.transpose(2, 3) / q.shape[3] ** 0.5

    def split(self, X: Tensor) -> Tensor:
        """(B, 2, R) -> (B, H, 2, R / H): as meant, or as released, where a head has neighbouring parts of one token."""
        if self.released:
            return X.reshape(len(X), self.heads, 2, -1)
        return X.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Encoder(nn.Module):
    """Where in the noise a feature lies: x (B, R), mean label vector (B, d) -> mean and log-variance, (B, d) each."""

    def __init__(self, features: int, width: int, hidden: int):
        super().__init__()
        self.layers = two_layers(features + width, hidden, 2 * width)
        self.mean, self.log_variance = linear(2 * width, width), linear(2 * width, width)

    def forward(self, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Both heads stand behind a leaky ReLU."""
        h = F.leaky_relu(self.layers(torch.cat([x, a], dim=1)), SLOPE)  # (B, 2 d)
        return self.mean(h), self.log_variance(h)


class Critic(nn.Module):
    """How real a feature looks for the mean of its label vectors: (B, R), (B, d) -> (B, 1)."""

    def __init__(self, features: int, width: int, hidden: int):
        super().__init__()
        self.layers = two_layers(features + width, hidden, 1)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        """Any real number."""
        return self.layers(torch.cat([x, a], dim=1))


def linear(inside: int, out: int) -> nn.Linear:
    """A layer whose weights start from small normal numbers, and its bias at 0."""
    layer = nn.Linear(inside, out)
    nn.init.normal_(layer.weight, std=SPREAD)
    nn.init.zeros_(layer.bias)
    return layer


def two_layers(inside: int, hidden: int, out: int) -> nn.Sequential:
    """inside -> hidden -> out, with a leaky ReLU in between."""
    return nn.Sequential(linear(inside, hidden), nn.LeakyReLU(SLOPE), linear(hidden, out))


# Losses ---------------------------------------------------------------------------------------------------------------


def mean_vectors(t: Tensor, present: Tensor) -> Tensor:
    """The mean label vector of each set, 0 without labels: (K, d), (B, K) bool -> (B, d)."""
    own = present.to(t.dtype)
    return own @ t / own.sum(dim=1, keepdim=True).clamp(min=1)


def latent(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Noise (B, d) at the place where the encoder puts a picture."""
    return mean + noise * (log_variance / 2).exp()


def gradient_penalty(critic, x: Tensor, fake: Tensor, a: Tensor, alpha: Tensor) -> Tensor:
    """How far the critic's slope between real and made-up features is from 1, squared; ``alpha`` (B, 1) in 0..1."""
    with torch.enable_grad():
        between = (alpha * x + (1 - alpha) * fake).detach().requires_grad_()  # (B, R)
        (slope,) = torch.autograd.grad(critic(between, a).sum(), between, create_graph=True)  # (B, R)
        return (slope.norm(dim=1) - 1).square().mean()


def reconstruction_loss(made: Tensor, x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of the encoder and the generator: sums over features and over latent numbers, the mean over pictures."""
    total = F.binary_cross_entropy(made, x, reduction="sum") + divergence(mean, log_variance)
    return total / len(x)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence from a standard normal, summed."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()


# Sets of labels -------------------------------------------------------------------------------------------------------


def as_indices(present: Tensor, slots: int) -> Tensor:
    """(n, K) bool -> (n, slots) label indices in order, then -1. No row has more labels than ``slots``."""
    place = present.cumsum(dim=1).clamp(min=1) - 1  # (n, K)
    row, label = present.nonzero(as_tuple=True)
    out = torch.full((len(present), slots), -1, dtype=torch.long, device=present.device)
    out[row, place[row, label]] = label
    return out


def as_mask(sets: Tensor, number: int) -> Tensor:
    """(n, L) indices, -1 for none -> (n, number) bool."""
    mask = torch.zeros(len(sets), number + 1, dtype=torch.bool)
    return mask.scatter_(1, sets.where(sets >= 0, number), True)[:, :number]


def joined(*parts: Tensor) -> Tensor:
    """Tables of sets, of several widths, below each other."""
    widest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, widest - part.shape[1]), value=-1) for part in parts])


def nearest_labels(seen: Tensor, new: Tensor) -> Tensor:
    """For each seen label the nearest new one by Euclidean distance: (S, d), (U, d) -> (S,)."""
    return torch.cdist(seen, new).argmin(dim=1)


def label_sets(own: Tensor, nearest: Tensor | None, as_they_are: float, replaced: float, mixed: float, dice) -> tuple:
    r"""Sets to make features for: training sets as they are, with all labels replaced, and with some.

    Args:
        own: (n, L) training sets, label indices or -1; each has a label.
        nearest: (S,) what replaces each label; None: nothing can, and the latter two are empty.
        as_they_are, replaced, mixed: shares of the training sets, each drawn at random without replacement; 1: all of
            them, in order.
        dice: random generator.

    Returns three (·, L). Of a mixed set of n labels, n // 2 draws *with* replacement say which ones stay. Labels that
    are replaced by the same one become one.
    """
    n, none = len(own), own[:0]

    def some(share: float) -> Tensor:
        return own if share == 1 else own[torch.randperm(n, generator=dice)[: int(share * n)]]

    plain = some(as_they_are)
    if nearest is None:
        return plain, none, none
    change = lambda sets: nearest[sets.clamp(min=0)].where(sets >= 0, -1)
    whole, half = some(replaced), some(mixed)
    number = (half >= 0).sum(dim=1, keepdim=True)  # (m, 1)
    draws = torch.rand(half.shape, generator=dice)
    draws = (draws * number).long().minimum((number - 1).clamp(min=0))  # (m, L), of which n // 2 count
    valid = torch.arange(half.shape[1]) < number // 2  # (m, L)
    stays = torch.zeros_like(half).scatter_add_(1, draws, valid.long()) > 0  # (m, L)
    return plain, without_repeats(change(whole)), without_repeats(half.where(stays, change(half)))


def without_repeats(sets: Tensor) -> Tensor:
    """Each label of a set once, in falling order, then -1."""
    if not sets.shape[1]:
        return sets
    sets = sets.sort(dim=1, descending=True).values
    again = F.pad(sets[:, 1:] == sets[:, :-1], (1, 0), value=False)
    return sets.masked_fill(again, -1).sort(dim=1, descending=True).values


def fill(sets: Tensor, asked: Tensor, new: Tensor, dice) -> Tensor:
    r"""Labels of the list that no set has are added to random sets, to as many as have the rarest of the new labels.

    Args:
        sets: (n, L).
        asked: (K,) labels of the list.
        new: (K,) bool, which of them are not seen. If none of these is in a set, the rarest of the list counts.
        dice: random generator.
    """
    count = counts(sets, asked)  # (K,)
    there = count[new & (count > 0)] if (new & (count > 0)).any() else count[count > 0]
    rarest = int(there.min()) if len(there) else 1
    for label in asked[count == 0].tolist():
        added = torch.full((len(sets), 1), -1)
        added[torch.randperm(len(sets), generator=dice)[:rarest]] = label
        sets = torch.cat([sets, added], dim=1)
        sets = sets.sort(dim=1, descending=True).values
        sets = sets[:, : int((sets >= 0).sum(dim=1).max())]
    return sets


def counts(sets: Tensor, asked: Tensor) -> Tensor:
    """How many sets (n, L) have each of the labels (K,): (K,)."""
    return torch.bincount(sets[sets >= 0], minlength=int(asked.max()) + 1)[asked]


def fit_classifier(x: Tensor, labels_of, epochs: int, batch: int, lr: float, dice) -> Tensor:
    r"""A linear classifier of features by the mean binary cross-entropy.

    Args:
        x: (n, R).
        labels_of: rows (b,) -> (b, K) bool.
        epochs, batch, lr: of Adam with beta1 0.5; a batch is drawn with replacement, n / batch of them are an epoch.
        dice: random generator of the CPU: what is drawn does not depend on the device.

    Returns (K, R + 1), weights and bias.
    """
    R, K = x.shape[1], labels_of(torch.zeros(1, dtype=torch.long)).shape[1]
    start = (2 * torch.rand(K, R + 1, generator=dice) - 1) / R**0.5  # as torch starts a linear layer
    w = start.to(x.device).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=lr, betas=(BETA1, 0.999))
    steps = epochs * -(-len(x) // batch)
    for _ in tqdm(range(steps), f"classifier of {K} labels", disable=None, leave=False):
        rows = torch.randint(len(x), (batch,), generator=dice)
        own = x[rows.to(x.device)]
        with torch.enable_grad():
            s = own @ w[:, :R].T + w[:, R]  # (b, K)
            loss = F.binary_cross_entropy_with_logits(s, labels_of(rows).to(x.device, s.dtype))
        (w.grad,) = torch.autograd.grad(loss, w)
        optimizer.step()
    return w.detach()

"""Gen-MLZSL against numbers of the released code, its parts written as loops, its label sets and its classifiers."""

import copy

import golden_clip
import pytest
import synthetic
import torch
from torch.testing import assert_close

from hrcf_lib import config as configs
from hrcf_lib import methods
from hrcf_lib.methods import gen_mlzsl
from hrcf_lib.methods.gen_mlzsl import PARTS, Critic, Encoder, Generator, GenMLZSL
from hrcf_lib.training import train

OURS = {  # released name -> ours
    "E.fc1": "E.layers.0",
    "E.fc3": "E.layers.2",
    "E.linear_means": "E.mean",
    "E.linear_log_var": "E.log_variance",
    "G.early_fusion.fc1": "G.early.0",
    "G.early_fusion.fc2": "G.early.2",
    "G.late_fusion.fc1": "G.late.0",
    "G.late_fusion.fc2": "G.late.2",
    "G.attn.self_attn.q_linear": "G.attention.query",
    "G.attn.self_attn.k_linear": "G.attention.key",
    "G.attn.self_attn.v_linear": "G.attention.value",
    "G.attn.self_attn.out": "G.attention.out",
    "G.attn.feedforward_net.linear_1": "G.network.0",
    "G.attn.feedforward_net.linear_2": "G.network.2",
    "D.fc1": "D.layers.0",
    "D.fc2": "D.layers.2",
}
INPUTS, OUTPUTS = (golden_clip.arrays(f"table1/gen_{part}") for part in ("inputs", "outputs"))
SETS = golden_clip.arrays("table1/gen_label_sets")


def close(ours, theirs):
    assert_close(ours.detach().reshape(theirs.shape), theirs, rtol=0, atol=5e-6 * max(1.0, float(theirs.abs().max())))


# -- the released code -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    """Ours by the names of the released code's arrays."""
    R, d, heads = 32, 12, int(INPUTS["heads"])
    parts = {"E": Encoder(R, d, R), "G": Generator(R, d, R, 40, heads), "D": Critic(R, d, 24)}
    whole = torch.nn.ModuleDict(parts).eval()
    state = golden_clip.arrays("table1/gen_state")
    renamed = lambda name: OURS[name.rpartition(".")[0]] + "." + name.rpartition(".")[2]
    whole.load_state_dict({renamed(name): value for name, value in state.items()})
    E, G, D = (parts[name] for name in "EGD")
    x, z, t = INPUTS["real"], INPUTS["noise"], INPUTS["attributes"][:14]
    present, gamma = INPUTS["labels"] == 1, INPUTS["gamma"]
    a = gen_mlzsl.mean_vectors(t, present)
    ours = {"mean_att": a, "late_out": G.feature_level(z, t, present), "early_out": G.attribute_level(z, t, present)}
    X = torch.stack([ours["late_out"], ours["early_out"]], dim=1)
    ours |= {"stacked": X, "attended": G.attention(X), "attention_scores": G.attention.likeness(X)}
    fake = G(z, t, present)
    ours |= {"fake": fake, "D_real": D(x, a), "D_fake": D(fake, a)}
    penalty = INPUTS["lambda"] * gen_mlzsl.gradient_penalty(D, x, fake.detach(), a, INPUTS["alpha"])
    critic = gamma * (D(fake.detach(), a).mean() - D(x, a).mean() + penalty)
    ours |= {"gradient_penalty": penalty, "D_cost": critic}
    critic.backward()
    parameters = dict(whole.named_parameters())
    ours |= {f"grad_D_cost__{n}": parameters[renamed(n)].grad.clone() for n in state if n.startswith("D.")}
    mean, log_variance = E(x, a)
    latent = gen_mlzsl.latent(mean, log_variance, INPUTS["eps"])
    made = G(latent, t, present)
    loss = gen_mlzsl.reconstruction_loss(made, x, mean, log_variance)
    ours |= {"means": mean, "log_vars": log_variance, "z": latent, "recon": made, "vae_loss": loss}
    ours |= {"kld": gen_mlzsl.divergence(mean, log_variance) / len(x), "G_cost": loss - gamma * D(fake, a).mean()}
    ours["G_cost"].backward()
    return ours | {f"grad_G_cost__{n}": parameters[renamed(n)].grad for n in state if n[0] in "GE"}


@pytest.mark.parametrize("name", OUTPUTS)
def test_features_losses_and_gradients_are_those_of_the_released_code(golden, name):
    close(golden[name], OUTPUTS[name])


def test_means_of_label_vectors_are_those_of_the_released_code(golden):
    close(golden["mean_att"], INPUTS["mean_att"])


def as_rows(sets, number):
    return sorted(gen_mlzsl.as_mask(sets, number).int().tolist())


@pytest.fixture
def training_sets():
    labels = SETS["train_labels"] == 1
    return gen_mlzsl.as_indices(labels[labels.any(dim=1)], 14), int(SETS["n_seen"])


def test_label_sets_are_those_of_the_released_code(training_sets):
    own, S = training_sets
    t = SETS["attributes"]
    nearest = gen_mlzsl.nearest_labels(t[:S], t[S:])
    assert nearest.tolist() == SETS["nearest_unseen"].tolist()
    parts = gen_mlzsl.label_sets(own, S + nearest, 1.0, 1.0, 0.0, torch.Generator())
    sets = torch.cat(parts)
    dice = torch.Generator().manual_seed(0)
    filled = gen_mlzsl.fill(sets, torch.arange(20), torch.arange(20) >= S, dice)
    assert as_rows(filled, 20) == sorted(SETS["seen_and_unseen__rows_sorted"].int().tolist())


def test_shares_of_the_released_script_make_as_many_sets(training_sets):
    """Rows drawn at random have another order there; counts and properties are the same."""
    own, S = training_sets
    nearest = S + SETS["nearest_unseen"].long()
    parts = gen_mlzsl.label_sets(own, nearest, 1.0, 0.5, 0.5, torch.Generator().manual_seed(0))
    assert [len(part) for part in parts] == SETS["script__rows_by_part"].tolist()
    plain, replaced, mixed = (gen_mlzsl.as_mask(part, 20) for part in parts)
    assert not plain[:, S:].any() and not replaced[:, :S].any()
    kept = [tuple(row.nonzero()[:, 0].tolist()) for row in gen_mlzsl.as_mask(own, 20)]
    for row in mixed:
        stay = set(row[:S].nonzero()[:, 0].tolist())
        new = set((row[S:].nonzero()[:, 0] + S).tolist())
        sources = [set(k) for k in kept if stay <= set(k) and {int(nearest[v]) for v in set(k) - stay} == new]
        assert any(len(stay) <= len(k) // 2 for k in sources)


def test_parameters_are_those_that_hrcf_prints():
    R, d = 4096, 300
    with torch.device("meta"):
        networks = [Encoder(R, d, 4096), Generator(R, d, 4096, 8192, 8), Critic(R, d, 4096)]
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    classifiers = 1006 * (R + 1), 81 * (R + 1)
    assert counts == [20_828_912, 172_716_032, 18_014_209] and classifiers == (4_121_582, 331_857)
    assert sum(counts) + sum(classifiers) == 216_012_592, "216.0 M in Table VI"


# -- loops -------------------------------------------------------------------------------------------------------------


def layer(linear, x):
    return linear.weight @ x + (0 if linear.bias is None else linear.bias)


def two(layers, x):
    h = layer(layers[0], x)
    return layer(layers[2], torch.where(h > 0, h, 0.2 * h))


@pytest.mark.parametrize("fusion", ["cross", "attribute", "feature"])
@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize(("R", "heads", "seed"), [(12, 2, 0), (16, 4, 1), (12, 1, 2)])
@torch.no_grad()
def test_the_generator_is_its_equations(fusion, released, R, heads, seed):
    torch.manual_seed(seed)
    d, G = 5, Generator(R, 5, 7, 9, heads, released, fusion).eval()
    for p in G.parameters():
        p.add_(0.3 * torch.randn_like(p))
    z, t = torch.randn(3, d), torch.randn(4, d)
    present = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]]).bool()
    w = R // heads

    def part(rows, h, i):
        """Half i of head h."""
        return torch.cat(rows)[(2 * h + i) * w :][:w] if released else rows[i][h * w :][:w]

    for b in range(3):
        own = [t[k] for k in range(4) if present[b, k]]
        levels = []
        if fusion != "attribute":
            levels.append(sum(two(G.late, torch.cat([z[b], a])).sigmoid() for a in own) / len(own))
        if fusion != "feature":
            levels.append(two(G.early, torch.cat([z[b], sum(own) / len(own)])).sigmoid())
        expected = levels[0]
        if fusion == "cross":
            attention = G.attention
            q, k, v = ([layer(f, x) for x in levels] for f in (attention.query, attention.key, attention.value))
            found = [[None] * heads, [None] * heads]
            for h in range(heads):
                for i in range(2):
                    e = [(part(q, h, i) @ part(k, h, j) / w**0.5).exp() for j in range(2)]
                    found[i][h] = sum(e[j] * part(v, h, j) for j in range(2)) / sum(e)
            X = [layer(attention.out, torch.cat(found[i])) + levels[i] for i in range(2)]
            expected = (sum(two(G.network, x) + x for x in X) / 2).sigmoid()
        assert_close(G(z, t, present)[b], expected, rtol=1e-4, atol=1e-5)


def test_released_heads_look_at_one_level_and_heads_as_meant_at_both():
    X = torch.randn(1, 2, 16)
    for released in (True, False):
        attention = gen_mlzsl.LevelAttention(16, 4, released)
        moved = X.clone()
        moved[:, 1] += 1
        changed = (attention.likeness(moved) - attention.likeness(X)).abs().amax(dim=(0, 2, 3)) > 0
        assert changed.tolist() == ([False, False, True, True] if released else [True] * 4)


@pytest.mark.parametrize("seed", [0, 1])
def test_losses_are_their_sums(seed):
    torch.manual_seed(seed)
    B, R, d = 4, 6, 3
    D, x, fake, a = Critic(R, d, 5), torch.rand(B, R), torch.rand(B, R), torch.randn(B, d)
    for p in D.parameters():
        p.data += 0.3 * torch.randn_like(p)
    alpha, total = torch.rand(B, 1), 0.0
    for b in range(B):
        between = (alpha[b] * x[b] + (1 - alpha[b]) * fake[b]).double()
        twin = copy.deepcopy(D).double()
        value = lambda v, b=b, twin=twin: twin(v[None], a[b : b + 1].double()).item()
        step = 1e-6 * torch.eye(R, dtype=torch.float64)
        slope = [(value(between + e) - value(between - e)) / 2e-6 for e in step]
        total += (sum(g * g for g in slope) ** 0.5 - 1) ** 2
    assert gen_mlzsl.gradient_penalty(D, x, fake, a, alpha).item() == pytest.approx(total / B, rel=1e-4)
    mean, v = torch.randn(B, d), torch.randn(B, d)
    by_hand = sum(-(p * q.log() + (1 - p) * (1 - q).log()) for p, q in zip(x.flatten(), fake.flatten()))
    by_hand += sum(-0.5 * (1 + w - m * m - w.exp()) for m, w in zip(mean.flatten(), v.flatten()))
    assert_close(gen_mlzsl.reconstruction_loss(fake, x, mean, v), by_hand / B, rtol=1e-4, atol=1e-4)


# -- sets --------------------------------------------------------------------------------------------------------------


def test_indices_and_masks_are_inverse():
    present = torch.rand(20, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    sets = gen_mlzsl.as_indices(present, 9)
    assert torch.equal(gen_mlzsl.as_mask(sets, 9), present)
    assert sets[0][sets[0] >= 0].tolist() == present[0].nonzero()[:, 0].tolist()


def test_replaced_labels_that_become_one_count_once():
    sets = torch.tensor([[0, 1, 2], [2, -1, -1]])
    _, replaced, _ = gen_mlzsl.label_sets(sets, torch.tensor([5, 5, 4]), 0.0, 1.0, 0.0, torch.Generator())
    assert replaced.tolist() == [[5, 4, -1], [4, -1, -1]]
    assert [len(part) for part in gen_mlzsl.label_sets(sets, None, 1.0, 1.0, 1.0, torch.Generator())] == [2, 0, 0]


def test_labels_of_no_set_are_added_to_as_many_as_have_the_rarest_new_one():
    sets = torch.tensor([[0, 6], [1, 6], [2, 6], [3, 7], [4, 7]])
    asked = torch.arange(9)
    filled = gen_mlzsl.fill(sets, asked, asked >= 6, torch.Generator().manual_seed(0))
    assert gen_mlzsl.counts(filled, asked).tolist() == [1, 1, 1, 1, 1, 2, 3, 2, 2]
    again = gen_mlzsl.fill(sets[:, :1], asked, asked >= 6, torch.Generator().manual_seed(0))
    assert gen_mlzsl.counts(again, asked).tolist() == [1] * 9, "without a new one, the rarest of the list"


def test_a_classifier_tells_features_apart():
    dice = torch.Generator().manual_seed(0)
    y = torch.rand(200, 3, generator=dice) < 0.5
    x = torch.cat([y.float(), torch.rand(200, 2, generator=dice)], dim=1)
    w = gen_mlzsl.fit_classifier(x, lambda rows: y[rows], 60, 50, 0.1, dice)
    s = x @ w[:, :5].T + w[:, 5]
    assert w.shape == (3, 6) and torch.equal(s > 0, y)


# -- the method --------------------------------------------------------------------------------------------------------

SMALL = {"hidden": 16, "classifier_epochs": 3, "critic_steps": 2, "centred": False}
UNSEEN = ["boat", "sea"]


def model(**changes) -> GenMLZSL:
    return methods.build("gen_mlzsl", synthetic.config(), pretrained=False, **SMALL | changes)


@pytest.fixture(scope="module")
def trained():
    method = model(lr=1e-3)
    return method, train(method, synthetic.features())


def test_values_of_presets():
    config = methods.configure("gen_mlzsl", configs.nus_wide())
    assert (config.hidden, config.heads, config.slots, config.critic_steps, config.gamma) == (4096, 8, 10, 5, 10.0)
    assert (config.penalty, config.lr, config.optimizer, config.weight_decay) == (10.0, 1e-4, "adam", 0.0)
    shares = config.as_they_are, config.replaced, config.mixed
    assert shares == (1.0, 0.5, 0.5) and config.released and config.fusion == "cross"
    assert (config.classifier_epochs, config.classifier_batch, config.classifier_lr) == (50, 300, 1e-3)


def test_steps_take_turns(trained):
    _, history = trained
    critic = history["step"] % 3 != 0
    assert (history.loc[critic, ["reconstruction", "adversarial"]] == 0).all(axis=None)
    assert (history.loc[~critic, ["wasserstein", "penalty"]] == 0).all(axis=None)
    assert (history.loc[critic, "penalty"] > 0).all() and (history.loc[~critic, "reconstruction"] > 0).all()


def test_a_step_moves_the_parameters_of_its_turn_alone():
    method, data = model(warmup_epochs=0.0), synthetic.features()
    before = synthetic.weights(method)
    train(method, data, stop_after=2)
    after = synthetic.weights(method)
    moved = {n.split(".")[0] for n in before if n in after and not torch.equal(before[n], after[n])}
    assert moved == {"critic", "low", "high", "sets"}
    method = model(warmup_epochs=0.0, critic_steps=1)
    train(method, data, stop_after=1)
    between = synthetic.weights(method)
    method.before_step(2)
    method.train()
    e_g, regions = method.image_embeddings(data.trunk[:].float())
    t, labels = method.label_embeddings(data.space.seen), data.labels[:, :5]
    parts = method.losses(e_g, regions, t, labels, data.teacher)
    sum(w * parts[n] for n, w in method.weights("images").items()).backward()
    touched = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None}
    assert touched == {"generator", "encoder"} and synthetic.same(between, synthetic.weights(method))


def test_the_critic_is_no_part_of_the_generators_turn_but_guides_it():
    """Gradients of the adversarial part go through the critic to the generator, and the encoder has none of them."""
    method, data = model(), synthetic.features()
    method.before_step(3)
    method.train()
    t, labels = method.label_embeddings(data.space.seen), data.labels[:, :5]
    e_g, regions = method.image_embeddings(data.trunk[:].float())
    method.losses(e_g, regions, t, labels, data.teacher)["adversarial"].backward()
    assert method.generator.early[0].weight.grad.abs().max() > 0
    assert all(p.grad is None for part in (method.critic, method.encoder) for p in part.parameters())


def test_adam_has_a_beta_of_its_own_for_the_encoder():
    groups = model().groups("images")
    for group in groups:
        assert group["betas"] == ((0.9 if group["names"][0].startswith("encoder.") else 0.5), 0.999)
    assert sorted({group["betas"][0] for group in groups}) == [0.5, 0.9]


def test_ranges_and_sets_are_those_of_usable_training_pictures(trained):
    method, data = trained[0], synthetic.features()
    e_p = method.vlp.teacher(data.trunk[:].float())
    assert_close(method.low, e_p.amin(dim=0), rtol=1e-4, atol=1e-5)
    assert_close(method.high, e_p.amax(dim=0), rtol=1e-4, atol=1e-5)
    x, regions = method.image_embeddings(data.trunk[:].float())
    assert x.min() >= -1e-4 and x.max() <= 1 + 1e-4 and regions.shape[1] == 0
    assert torch.equal(gen_mlzsl.as_mask(method.sets.long(), 5), data.labels[:, :5] == 1)
    crowded = model(slots=1)
    labels = torch.tensor([[1, 1, -1], [1, 0, -1], [-1, -1, 0]])
    assert crowded.usable(labels).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="no picture has 1 to 1 positive labels: raise slots"):
        data.labels[:, :5] = 1
        train(crowded, data)


def test_test_features_leave_the_range_unless_clamped(trained):
    method, trunk = trained[0], 3 * synthetic.features(seed=5).trunk[:].float()
    with torch.no_grad():
        wide = method.image_embeddings(trunk)[0]
        narrow = method.under(method.config.replace(clamp=True)).image_embeddings(trunk)[0]
    assert (wide.max() > 1 or wide.min() < 0) and torch.equal(narrow, wide.clamp(0, 1))


def test_a_score_depends_on_the_list_and_a_list_is_fitted_once(trained, monkeypatch):
    method, fits = copy.deepcopy(trained[0]), []
    method.classifiers.clear()
    fit = method.fit
    monkeypatch.setattr(method, "fit", lambda names: fits.append(names) or fit(names))
    both = method.label_embeddings(UNSEEN)
    assert both.shape == (2, method.vlp.D + 1) and torch.equal(method.label_embeddings(UNSEEN[::-1]), both.flip(0))
    assert fits == [sorted(UNSEEN)], "in another order it is the same list"
    whole = method.label_embeddings([*synthetic.SPACE.seen, *UNSEEN])
    assert len(fits) == 2 and not torch.allclose(whole[-2:], both)
    assert method.under(method.config.replace(classifier_epochs=1)).label_embeddings(UNSEEN).shape == both.shape
    with torch.no_grad():
        method.generator.early[0].bias.add_(0.1)
    assert not torch.equal(method.label_embeddings(UNSEEN), both), "other weights, another classifier"


def test_only_so_many_lists_are_kept(trained, monkeypatch):
    method = copy.deepcopy(trained[0])
    method.classifiers.clear()
    monkeypatch.setattr(gen_mlzsl, "KEPT", 2)
    for name in ("boat", "sea", "zebra"):
        method.label_embeddings([name])
    assert [key[0] for key in method.classifiers] == [("sea",), ("zebra",)]


def test_lists_with_and_without_seen_labels(trained):
    """Which sets a list is fitted to: V is of five seen labels, then the new ones of the list."""
    method, dice = trained[0], lambda: torch.Generator().manual_seed(0)
    own = method.sets.long()
    t = method.conditions([*synthetic.SPACE.seen, *UNSEEN])
    zero_shot = method._sets_for(t, torch.tensor([5, 6]), 5, dice())
    mask = gen_mlzsl.as_mask(zero_shot, 7)
    joined = mask[:, 5:].any(dim=1)
    assert joined.sum() == len(own) // 2, "replaced alone"
    seen_only = method._sets_for(t[:5], torch.arange(5), 5, dice())
    assert torch.equal(gen_mlzsl.as_mask(seen_only, 5)[: len(own)], gen_mlzsl.as_mask(own, 5))
    general = method._sets_for(t, torch.arange(7), 5, dice())
    assert len(general) == 2 * len(own) and (gen_mlzsl.counts(general, torch.arange(7)) > 0).all()
    alone = gen_mlzsl.as_mask(method._sets_for(t[:6], torch.tensor([5]), 5, dice()), 6)
    assert alone[:, 5].any() and not alone[:, 5].all(), "a list of one needs sets without it"


def test_a_cap_on_sets(trained, monkeypatch):
    sizes = []
    fitted = gen_mlzsl.fit_classifier
    monkeypatch.setattr(gen_mlzsl, "fit_classifier", lambda x, *rest: sizes.append(len(x)) or fitted(x, *rest))
    method = trained[0].under(trained[0].config.replace(synthetic=4))
    method.label_embeddings([*synthetic.SPACE.seen, *UNSEEN])
    assert sizes == [4]


def test_an_untrained_model_takes_each_label_as_a_set():
    method = model().eval()
    sets = method._sets_for(method.conditions(UNSEEN), torch.arange(2), 0, torch.Generator())
    assert sets.tolist() == [[0], [1]]
    assert method._sets_for(method.conditions(["boat"]), torch.arange(1), 0, torch.Generator()).tolist() == [[0], [-1]]


def test_training_mode_gives_label_vectors_which_are_no_classifier(trained):
    method = copy.deepcopy(trained[0]).train()
    t = method.label_embeddings(["cat", "boat"])
    assert t.shape == (2, method.vlp.D) and not method.classifiers.keys() - trained[0].classifiers.keys()
    with pytest.raises(ValueError, match="width 128 are no classifier of 128 features and a bias: take those that"):
        method.score_embeddings(torch.zeros(1, 128), torch.zeros(1, 0, 128), t)


def test_saved_with_sets_and_ranges(trained, tmp_path):
    method = trained[0]
    state = {name: value.clone() for name, value in method.trainable_state().items()}
    again = model(lr=1e-3).eval()
    again.load_trainable(state, "there")
    again.vlp, again.reference_labels = method.vlp, method.reference_labels
    assert torch.equal(again.sets, method.sets) and again.sets.dtype == torch.int32
    assert torch.equal(again.label_embeddings(UNSEEN), method.label_embeddings(UNSEEN))


def test_centred_label_vectors_have_no_common_part(trained):
    method = trained[0].under(trained[0].config.replace(centred=True))
    seen = method.conditions(synthetic.SPACE.seen)
    assert_close(seen.norm(dim=1), torch.ones(5))
    plain = trained[0].conditions(synthetic.SPACE.seen)
    cosine = lambda t: (t @ t.T)[~torch.eye(5, dtype=torch.bool)].mean()
    assert cosine(seen) < cosine(plain)


def test_without_the_encoder_its_part_weighs_nothing():
    method = model(reconstruction=0.0)
    assert dict(zip(PARTS, method.weights("images").values()))["reconstruction"] == 0
    history = train(method, synthetic.features(), stop_after=3)
    assert history["adversarial"].iloc[-1] != 0
    assert all(torch.equal(p, q) for p, q in zip(method.encoder.parameters(), model().encoder.parameters()))


@pytest.mark.parametrize("fusion", ["attribute", "feature"])
def test_other_fusions_train_and_score(fusion):
    method = model(fusion=fusion)
    train(method, synthetic.features(), stop_after=3)
    assert method.score(torch.zeros(1, 3, 112, 112, dtype=torch.uint8), UNSEEN).isfinite().all()
    assert (method.generator.attention is None) and (method.generator.late is None) == (fusion == "attribute")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heads": 7}, "heads = 7 of features of 128 numbers: choose a divisor of 128"),
        ({"gamma": 0.0}, "gamma = 0: the critic's steps would have no loss"),
        ({"replaced": 0.0}, "as_they_are = 1.0, replaced = 0.0: one of them alone"),
        ({"slots": 0}, "slots = 0 must be from 1 to"),
        ({"fusion": "both"}, "fusion = 'both': choose one of cross, attribute, feature"),
    ],
)
def test_bad_values_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        model(**changes)


def test_features_that_are_not_finite_end_the_run():
    method, data = model(), synthetic.features()
    method.before_step(3)
    with torch.no_grad():
        method.generator.network[0].bias.fill_(torch.nan)
    t, labels = method.train().label_embeddings(data.space.seen), data.labels[:, :5]
    e_g, regions = method.image_embeddings(data.trunk[:].float())
    with pytest.raises(FloatingPointError):
        method.losses(e_g, regions, t, labels, data.teacher)


def test_words_of_a_glove_file_set_the_width(tmp_path):
    path = tmp_path / "glove.txt"
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).tolist()
    path.write_text("".join(f"{n} {' '.join(map(str, r))}\n" for n, r in zip(synthetic.SPACE.names, rows)), "utf-8")
    method = model(glove=str(path))
    train(method, synthetic.features(), stop_after=3)
    assert method.label_embeddings(UNSEEN).shape == (2, 129) and method.encoder.mean.out_features == 5
    with pytest.raises(ValueError, match="'zebra' is not in"):
        method.label_embeddings(["zebra"])

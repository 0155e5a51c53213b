"""(ML)2P-Encoder against the released code's numbers, its equations written as loops, and its parameter counts."""

import math

import golden_clip
import pytest
import synthetic
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from hrcf_lib import config as configs
from hrcf_lib import methods
from hrcf_lib.losses import ranking_loss
from hrcf_lib.methods import ml2p_encoder
from hrcf_lib.methods.ml2p_encoder import FORM, ChannelClassNetwork, ML2PEncoder, vectors
from hrcf_lib.methods.zs_sdl import semantic_diversity_loss
from hrcf_lib.training import only

OURS = {  # released name -> ours
    "conv_embedding": "embedding",
    "Channel_MLP.channel_mlp.mlp_token.dense_1": "mixer.positions.0",
    "Channel_MLP.channel_mlp.mlp_token.dense_2": "mixer.positions.2",
    "Channel_MLP.channel_mlp.mlp_channel.dense_1": "mixer.channels.0",
    "Channel_MLP.channel_mlp.mlp_channel.dense_2": "mixer.channels.2",
    "Channel_MLP.channel_mlp.layer_norm_1": "mixer.norm_1",
    "Channel_MLP.channel_mlp.layer_norm_2": "mixer.norm_2",
    "Channel_MLP.channel_attn": "channel_attention",  # of which temperature is a parameter
    "Channel_MLP.channel_attn.qkv": "channel_attention.qkv",
    "Channel_MLP.channel_attn.qkv_dwconv": "channel_attention.depthwise",
    "Group_Attention.Linear1.dense_1": "group_attention.query.0",
    "Group_Attention.Linear1.dense_2": "group_attention.query.2",
    "Group_Attention.Linear2.dense_1": "group_attention.key.0",
    "Group_Attention.Linear2.dense_2": "group_attention.key.2",
}
UNUSED = "Channel_MLP.channel_attn.project_out"  # made there, never used
M, D_WORDS = 3, 10


def renamed(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{OURS[module]}.{leaf}"


# -- the released code -------------------------------------------------------------------------------------------------


class Level(nn.Module):
    """A level of the released pyramid, which the VLP has no use for: convolution, norm, ReLU, max-pooling."""

    def __init__(self, inside: int, out: int, by: int):
        super().__init__()
        self.conv, self.bn, self.by = nn.Conv2d(inside, out, 1, bias=False), nn.BatchNorm2d(out), by

    def forward(self, x):
        return F.max_pool2d(self.bn(self.conv(x)).relu(), self.by)


@pytest.fixture(scope="module")
def golden():
    """(outputs of the released code, ours by the same names)."""
    inputs, outputs = (golden_clip.arrays(f"table1/ml2p_{part}") for part in ("inputs", "outputs"))
    state = golden_clip.arrays("table1/ml2p_state")
    levels = nn.ModuleList([Level(6, 5, 4), Level(10, 7, 2)])
    levels.load_state_dict({n.removeprefix("ft_module."): v for n, v in state.items() if n.startswith("ft_module.")})
    network = ChannelClassNetwork(24, int(inputs["rows"]), D_WORDS, 7)
    own = {n: v for n, v in state.items() if not n.startswith(("ft_module.", UNUSED))}
    network.load_state_dict({renamed(n): v for n, v in own.items()})
    levels.eval(), network.eval()
    ours = {}
    keep = lambda name, part: part.register_forward_hook(lambda *x: ours.update({name: x[-1]}))
    for name in ("embedding", "channel_attention", "mixer"):
        keep(name, network.get_submodule(name))
    network.channel_attention.register_forward_pre_hook(lambda _, x: ours.update(shuffled=x[0]))
    network.group_attention.register_forward_pre_hook(lambda _, x: ours.update(encoded=x[0]))
    ours["level_1"], ours["level_2"] = levels[0](inputs["source_1"]), levels[1](inputs["source_2"])
    S = network(torch.cat([ours["level_1"], ours["level_2"], inputs["source_3"]], dim=1))
    ours |= {"S": S, "embedded": ours.pop("embedding"), "mixed": ours.pop("mixer")}
    (S * inputs["out_weight"]).sum().backward(retain_graph=True)
    ours |= {f"grad__ft_module.{n}": p.grad.clone() for n, p in levels.named_parameters()}
    parameters = dict(network.named_parameters())
    for name in own:
        ours[f"grad__{name}"] = parameters[renamed(name)].grad.clone()
    score = lambda reading, words: (vectors(S, reading) @ words.T).amax(dim=1)
    every = F.normalize(torch.cat([inputs["seen_vecs"], inputs["unseen_vecs"]]), dim=1)
    ours["scores_unseen"] = score("flat", inputs["unseen_vecs"])
    ours["scores_all"] = score("flat", every)
    ours["scores_transposed_unseen"] = score("rows", inputs["unseen_vecs"])
    loss = semantic_diversity_loss(vectors(S, "flat"), inputs["labels"], inputs["seen_vecs"], 0.4)
    ours["guess__sdl_loss_w04"] = loss
    (ours["guess__grad_conv_embedding"],) = torch.autograd.grad(loss, network.embedding.weight)
    return outputs, ours


OUTPUTS = golden_clip.arrays("table1/ml2p_outputs")


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_step_score_and_gradient_is_that_of_the_released_code(golden, name):
    theirs, ours = golden[0][name], golden[1][name].detach().reshape(golden[0][name].shape)
    tolerance = 2e-5 if "grad_" in name else 1e-5
    assert_close(ours, theirs, rtol=0, atol=tolerance * max(1.0, float(theirs.abs().max())))


def test_the_shuffle_changes_nothing_that_can_be_learnt(monkeypatch):
    network, x = ChannelClassNetwork(4, M, 6, 3).eval(), torch.randn(2, 4, 3, 3)
    expected = network(x)
    order = torch.arange(M * 6).unflatten(0, (M, 6)).T.flatten()  # of the columns that Conv1x1 sees
    monkeypatch.setattr(ml2p_encoder, "shuffled", lambda x, groups: x)
    with torch.no_grad():
        weight = network.channel_attention.qkv.weight
        weight.copy_(weight[:, order.argsort()])
    assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


# -- loops -------------------------------------------------------------------------------------------------------------


def linear(layer, x):
    return [sum(w * v for w, v in zip(row, x)) + b for row, b in zip(layer.weight.tolist(), layer.bias.tolist())]


def two(layers, x):
    gelu = lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2)))
    return linear(layers[2], [gelu(v) for v in linear(layers[0], x)])


def normed(layer, x):
    mean = sum(x) / len(x)
    spread = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + layer.eps)
    return [w * (v - mean) / spread + b for v, w, b in zip(x, layer.weight.tolist(), layer.bias.tolist())]


def by_loops(network, x, form) -> list:
    """S of one picture, one channel, one position and one group at a time."""
    groups, side, P = network.groups, x.shape[-1], x.shape[-1] ** 2
    columns = x.flatten(1).T.tolist()  # P x channels
    conv = lambda layer, x: linear(_flat(layer), x)
    embedded = [conv(network.embedding, x) for x in columns]  # P x (M d)
    d = len(embedded[0]) // groups
    if form["channel_attention"]:
        attention = network.channel_attention
        mixed = [[x[m * d + c] for c in range(d) for m in range(groups)] for x in embedded]  # the shuffle
        wide = [conv(attention.qkv, x) for x in mixed]  # P x (3 M d)
        kernel, bias = attention.depthwise.weight[:, 0].tolist(), attention.depthwise.bias.tolist()

        def depthwise(c, p):
            i, j = divmod(p, side)
            near = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if 0 <= i + a < side and 0 <= j + b < side]
            return bias[c] + sum(kernel[c][a + 1][b + 1] * wide[(i + a) * side + j + b][c] for a, b in near)

        rows = lambda part, m: [[depthwise((part * groups + m) * d + c, p) for p in range(P)] for c in range(d)]
        unit = lambda row: [v / math.sqrt(sum(u * u for u in row)) for v in row]
        y = []  # M x d x P
        for m in range(groups):
            q, k, v = [unit(r) for r in rows(0, m)], [unit(r) for r in rows(1, m)], rows(2, m)
            tau, own = attention.temperature[m].item(), []
            for c in range(d):
                e = [math.exp(tau * sum(a * b for a, b in zip(q[c], other))) for other in k]
                own.append([sum(w * v[o][p] for o, w in enumerate(e)) / sum(e) for p in range(P)])
            y.append(own)
    else:
        y = [[[embedded[p][m * d + c] for p in range(P)] for c in range(d)] for m in range(groups)]
    E = []
    for own in y:
        X = [[own[c][p] for c in range(d)] for p in range(P)]  # P x d
        if form["mixer"]:
            tall = [normed(network.mixer.norm_1, row) for row in X]
            more = [two(network.mixer.positions, [tall[p][c] for p in range(P)]) for c in range(d)]  # d x P
            X = [[X[p][c] + more[c][p] for c in range(d)] for p in range(P)]
            X = [[a + b for a, b in zip(r, two(network.mixer.channels, normed(network.mixer.norm_2, r)))] for r in X]
        pool = max if form["pool"] == "max" else (lambda values: sum(values) / P)
        E.append([1 / (1 + math.exp(-pool([X[p][c] for p in range(P)]))) for c in range(d)])
    if not form["group_attention"]:
        return E
    q, k = ([two(layers, e) for e in E] for layers in (network.group_attention.query, network.group_attention.key))
    weight = [[sum(a * b for a, b in zip(q[m], k[n])) for n in range(groups)] for m in range(groups)]
    return [[sum(weight[m][n] * E[n][c] for n in range(groups)) for c in range(d)] for m in range(groups)]


def _flat(layer):
    """A 1 x 1 convolution as a linear layer."""
    flat = nn.Linear(layer.in_channels, layer.out_channels)
    flat.weight, flat.bias = nn.Parameter(layer.weight.flatten(1)), layer.bias
    return flat


WHOLE = {"channel_attention": True, "mixer": True, "group_attention": True, "pool": "max"}


@pytest.mark.parametrize(
    ("changes", "groups", "width", "side"),
    [({}, 2, 5, 3), ({}, 1, 3, 2), ({}, 4, 6, 3), ({"channel_attention": False}, 3, 5, 2), ({"mixer": False}, 2, 4, 3)]
    + [({"group_attention": False}, 3, 4, 2), ({"pool": "mean"}, 2, 5, 3)],
)
def test_the_network_is_its_equations(changes, groups, width, side):
    torch.manual_seed(groups)
    network = ChannelClassNetwork(4, groups, width, side, **WHOLE | changes).double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn_like(p))
        x = torch.randn(2, 4, side, side, dtype=torch.float64)
        network.group_attention and network.group_attention.float()  # which it computes in float32 at least
        S = network(x)
    expected = torch.tensor([by_loops(network, own, WHOLE | changes) for own in x])
    assert_close(S.double(), expected.double(), rtol=1e-4, atol=1e-5)


def test_both_readings_number_by_number():
    S = torch.arange(24.0).reshape(2, 3, 4)
    flat = vectors(S, "flat")
    for b in range(2):
        for m in range(3):
            assert flat[b, m].tolist() == S[b].flatten().tolist()[m::3], "every M-th number"
    assert torch.equal(vectors(S, "rows"), S)


# -- the method --------------------------------------------------------------------------------------------------------


def model(**changes) -> ML2PEncoder:
    return methods.build("ml2p_encoder", synthetic.config(), pretrained=False, **{"groups": 2} | changes)


def parameters(*sizes, **form) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in ChannelClassNetwork(*sizes, **form).parameters())


def test_parameters_of_the_head():
    embedding, group = 2048 * 2100 + 2100, 4 * (300 * 300 + 300)
    assert (embedding, group) == (4_302_900, 361_200)
    encoder = 17_749_907 - 4_412_100  # without the projection that the released code makes and never uses
    assert parameters(2048, 7, 300, 7) == embedding + encoder + group
    assert round(parameters(512, 7, 512, 7) / 1e6, 1) == 41.7, "M = 7 on D = 512"
    assert round(parameters(512, 4, 512, 7) / 1e6, 1) == 14.9, "M = 4"
    with torch.device("meta"):
        widest = ChannelClassNetwork(512, 7, 512, 7).channel_attention.qkv
    assert round(widest.weight.numel() / 1e6, 1) == 38.5


def test_values_of_presets():
    config = methods.configure("ml2p_encoder", configs.nus_wide())
    assert (config.groups, config.lr, config.diversity, config.reading) == (7, 5e-5, 0.4, "flat")
    assert (config.loss, config.map_side) == ("semantic_diversity", 7)


@pytest.mark.parametrize(("map_side", "P"), [(7, 49), (14, 196), (99, 196), (2, 4), (5, 25)])
def test_the_map_is_max_pooled_to_the_side_that_is_asked_for(map_side, P):
    method = model(map_side=map_side).eval()
    assert method.network.mixer.positions[0].in_features == P
    trunk = synthetic.features(n=2).trunk[:].float()
    seen = []
    method.network.embedding.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        _, A = method.image_embeddings(trunk)
    assert A.shape == (2, 2, method.vlp.D) and seen[0].shape[2:].numel() == P
    assert_close(seen[0].amax(dim=(2, 3)), method.vlp.dense(trunk).amax(dim=1), msg="the largest stays")


def test_a_label_is_scored_alone_by_its_best_vector():
    method = model().eval()
    with torch.no_grad():
        e_g, A = method.image_embeddings(synthetic.features(n=3).trunk[:].float())
        t = method.label_embeddings(["cat", "boat", "sun"])
        s = method.score_embeddings(e_g, A, t)
    assert_close(t.norm(dim=1), torch.ones(3))
    for b in range(3):
        for k in range(3):
            assert float(s[b, k]) == pytest.approx(max(float(a @ t[k]) for a in A[b]), rel=1e-4, abs=1e-5)
    assert torch.equal(method.score_alone(e_g, A, t[:2], t[2:]), method.score_embeddings(e_g, A, t[2:]))


@pytest.mark.parametrize("loss", ["semantic_diversity", "ranking"])
def test_losses_go_by_their_name_and_reach_the_whole_network(loss):
    method, data = model(loss=loss), synthetic.features()
    only(method, "images")
    t, labels = method.label_embeddings(data.space.seen), data.labels[:, : data.space.n_seen]
    e_g, A = method.image_embeddings(data.trunk[:].float())
    parts = method.losses(e_g, A, t, labels, data.teacher)
    assert list(parts) == list(method.weights("images")) == [loss]
    s = method.score_embeddings(e_g, A, t)
    expected = ranking_loss(s, labels) if loss == "ranking" else semantic_diversity_loss(A, labels, t, 0.4)
    assert_close(parts[loss], expected)
    parts[loss].backward()
    for name, p in method.named_parameters():
        assert (p.grad is not None and p.grad.abs().max() > 0) == name.startswith("network."), name
    with pytest.raises(FloatingPointError):
        method.losses(e_g, A * torch.nan, t, labels, data.teacher)


def test_group_attention_stays_in_float32():
    method = model().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, A = method.image_embeddings(synthetic.features(n=2).trunk[:].float())
    assert A.dtype == torch.float32


def test_rows_of_the_ablation_are_configs():
    for changes in ml2p_encoder.ABLATIONS.values():
        method = model(**changes)
        for part in FORM[:3]:
            assert (getattr(method.network, part) is None) == (changes.get(part) is False)


@pytest.mark.parametrize("changes", [{"groups": 0}, {"map_side": 0}, {"diversity": 1.5}, {"loss": "bce"}])
def test_values_out_of_range_are_refused(changes):
    (field,) = changes
    with pytest.raises(ValueError, match=f"{field} = "):
        model(**changes)


def test_words_of_a_glove_file_set_the_width(tmp_path):
    path = tmp_path / "glove.txt"
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).tolist()
    path.write_text("".join(f"{n} {' '.join(map(str, r))}\n" for n, r in zip(synthetic.SPACE.names, rows)), "utf-8")
    method = model(glove=str(path)).eval()
    with torch.no_grad():
        e_g, A = method.image_embeddings(synthetic.features(n=2).trunk[:].float())
        assert A.shape == (2, 2, 5) and method.score_embeddings(e_g, A, method.label_embeddings(["cat"])).shape == (
            2,
            1,
        )
    with pytest.raises(ValueError, match="'zebra' is not in"):
        method.label_embeddings(["zebra"])

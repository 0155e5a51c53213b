"""CLIP's ResNets as frozen VLPs, pictures of another side for every VLP, and every method on them or refused."""

import dataclasses

import golden_clip
import open_clip
import pytest
import synthetic
import tiny_resnet
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.testing import assert_close

from hrcf_lib import evaluation, methods
from hrcf_lib import vlp as vlps
from hrcf_lib.apply import onnx
from hrcf_lib.apply.grad_cam import grad_cam
from hrcf_lib.apply.vocabulary import beside_reference
from hrcf_lib.data import benchmarks
from hrcf_lib.data.feeds import sources
from hrcf_lib.methods.missing_labels.base import Contexts
from hrcf_lib.methods.template import Template, TemplateConfig
from hrcf_lib.prompts import KINDS, PromptLearner
from hrcf_lib.speed import plain
from hrcf_lib.training import train

CLOSE = dict(rtol=1e-5, atol=1e-5)


def alike(a, b, rounding=1e-5):
    """Equal to rounding, as measured by the largest number."""
    assert_close(a, b, rtol=0, atol=rounding * b.abs().max().item())


NAMES = ["owl", "pizza", "bus", "polar bear"]
VIT_ONLY = ("hrcf", "hrcf_open", "clip_ft", "mkt")
EITHER = [name for name in methods.names() if name not in VIT_ONLY]


@pytest.fixture(scope="module", autouse=True)
def entered():
    with pytest.MonkeyPatch.context() as patch:
        tiny_resnet.enter(patch)
        patch.setitem(open_clip.factory._MODEL_CONFIGS, "golden", golden_clip.CONFIG)
        yield


@pytest.fixture(scope="module")
def vlp(entered):
    return tiny_resnet.load()


@pytest.fixture(scope="module")
def checkpoint(entered, tmp_path_factory):
    return tiny_resnet.save(tmp_path_factory.mktemp("weights"))


def pictures(B=2, side=64, seed=1):
    """Fields of colour: of noise at every pixel all pictures would look alike to a random tower."""
    cells = torch.rand(B, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(cells, size=(side, side), mode="nearest")


# The tower ------------------------------------------------------------------------------------------------------------


def test_sizes_and_kind(vlp):
    assert (vlp.C, vlp.D, vlp.N, vlp.side) == (256, 32, 2, 64)
    assert (vlp.text_width, vlp.context_length, vlp.depth, vlp.trained_blocks) == (48, 40, 0, 0)
    assert not vlp.is_vit and vlps.load("golden", pretrained=False).is_vit
    assert vlps.load("golden", pretrained=False).text_width == 64
    assert not vlp.training and not any(p.requires_grad for p in vlp.parameters())


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-resnet-quickgelu"])
@pytest.mark.parametrize("side", [64, 96])
def test_global_embeddings_are_those_of_open_clip(name, side):
    vlp, images = tiny_resnet.load(name, side), pictures(3, side)
    assert vlp.N == side // 32 and vlp.quick_gelu == name.endswith("quickgelu")
    e, t = vlp.encode_image(images), vlp.encode_text(NAMES)
    alike(e, vlp.model.encode_image(vlp.normalise(images)))
    assert_close(t, vlp.model.encode_text(vlp.tokenizer(NAMES, context_length=40)), **CLOSE)
    assert e.shape == (3, 32) and t.shape == (4, 32) and (e[0] - e[1]).abs().max() > 0.1 * e.abs().max()


def test_the_trunk_is_the_last_map_behind_its_mean(vlp):
    kept = []
    handle = vlp.model.visual.layer4.register_forward_hook(lambda module, given, out: kept.append(out))
    trunk = vlp.trunk(pictures())
    handle.remove()
    assert trunk.shape == (2, 1 + 4, 256)
    for b in range(2):
        for row in range(2):
            for column in range(2):
                assert torch.equal(trunk[b, 1 + 2 * row + column], kept[0][b, :, row, column])
    alike(trunk[:, 0], kept[0].mean(dim=(2, 3)))


def test_a_dense_feature_is_what_the_pool_gives_of_one_position_alone(vlp):
    trunk, pool = vlp.trunk(pictures()), vlp.model.visual.attnpool
    dense = vlp.dense(trunk)
    assert dense.shape == (2, 4, 32)
    for b in range(2):
        for j in range(4):
            x = trunk[b, 1 + j]
            value = pool.v_proj.weight @ x + pool.v_proj.bias
            alike(dense[b, j], pool.c_proj.weight @ value + pool.c_proj.bias)


def test_with_attention_that_is_even_the_global_embedding_is_the_mean_of_dense_features():
    vlp = tiny_resnet.load()
    pool = vlp.model.visual.attnpool
    with torch.no_grad():
        for values in (pool.q_proj.weight, pool.q_proj.bias, pool.positional_embedding):
            values.zero_()
    trunk = vlp.trunk(pictures())
    alike(vlp.teacher(trunk), vlp.dense(trunk).mean(dim=1))


def test_dense_features_of_a_vit_are_norm_and_projection_of_its_patches():
    vlp = golden_clip.vlp()
    images, v = pictures(side=56), vlp.model.visual
    trunk = vlp.trunk(images)  # before the last block, which HRCF trains a copy of
    last = v.transformer.resblocks[-1](trunk)
    assert_close(vlp.dense(trunk), v.ln_post(last)[:, 1:] @ v.proj, **CLOSE)
    vlp.trained_blocks = 0
    assert_close(vlp.trunk(images), last, **CLOSE)
    assert_close(vlp.dense(last), v.ln_post(last)[:, 1:] @ v.proj, **CLOSE)


# Loading, and pictures of another side --------------------------------------------------------------------------------


def as_safetensors(state, folder):
    save_file(state, folder / "clip.safetensors")
    return folder / "clip.safetensors"


def as_half(state, folder):
    return as_safetensors({n: v.half() if v.is_floating_point() else v for n, v in state.items()}, folder)


def as_pytorch(state, folder):
    torch.save({"state_dict": {f"module.{n}": v for n, v in state.items()}}, folder / "clip.pt")
    return folder / "clip.pt"


WRITERS = pytest.mark.parametrize("write", [as_safetensors, as_half, as_pytorch])


def enlarged(rows, N: int):
    """Position vectors (1 + n^2, C) for a grid of N x N: the first as it is, the others bicubic and antialiased."""
    n = int((len(rows) - 1) ** 0.5)
    maps = rows[1:].T.reshape(1, -1, n, n)
    maps = F.interpolate(maps, size=(N, N), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([rows[:1], maps[0].flatten(1).T])


@WRITERS
def test_a_checkpoint_comes_back_at_its_own_side_and_at_another(vlp, tmp_path, write):
    path, rounding = write(vlp.model.state_dict(), tmp_path), 2e-2 if write is as_half else 1e-5
    own, large = vlps.load(tiny_resnet.NAME, path), vlps.load(tiny_resnet.NAME, path, side=128)
    assert (own.N, large.N, large.side) == (2, 4, 128) and not any(p.requires_grad for p in large.parameters())
    alike(own.encode_image(pictures()), vlp.encode_image(pictures()), rounding)
    rows = vlp.model.visual.attnpool.positional_embedding
    alike(large.model.visual.attnpool.positional_embedding, enlarged(rows, 4), rounding)
    alike(large.encode_image(pictures(2, 128)), large.model.encode_image(large.normalise(pictures(2, 128))))
    rest = {n: v for n, v in own.model.state_dict().items() if n != own.positions}
    assert synthetic.same(rest, {n: v for n, v in large.model.state_dict().items() if n != own.positions})
    assert large.hash != own.hash == vlps.load(tiny_resnet.NAME, path, side=64).hash


@WRITERS
def test_a_vit_of_another_side_is_that_of_open_clip(tmp_path, write):
    state, images = golden_clip.state(), pictures(2, 112)
    vlp = vlps.load("golden", write(state, tmp_path), side=112)
    assert (vlp.N, vlp.side) == (14, 112)
    model = open_clip.create_model("golden", force_image_size=112).eval()
    rounded = {n: v.half().float() if write is as_half else v for n, v in state.items()}
    open_clip.load_checkpoint(model, str(as_safetensors(rounded, tmp_path)))
    assert_close(vlp.encode_image(images), model.encode_image(vlp.normalise(images)), **CLOSE)


def test_a_checkpoint_of_that_side_is_taken_as_it_is(tmp_path):
    large = tiny_resnet.load(side=128)
    path = as_safetensors(large.model.state_dict(), tmp_path)
    assert vlps.load(tiny_resnet.NAME, path, side=128).hash == large.hash
    with pytest.raises(ValueError, match=r"attnpool.positional_embedding is \(17, 256\), expected \(5, 256\)"):
        vlps.load(tiny_resnet.NAME, path)


@pytest.mark.parametrize("rows", [torch.zeros(7, 256), torch.zeros(5, 3), torch.zeros(5)])
def test_positions_that_form_no_grid_are_named(vlp, tmp_path, rows):
    state = vlp.model.state_dict() | {vlp.positions: rows}
    with pytest.raises(ValueError, match="attnpool.positional_embedding is .*, expected .17, 256."):
        vlps.load(tiny_resnet.NAME, as_safetensors(state, tmp_path), side=128)


def test_the_mini_takes_another_side():
    vlp, own = vlps.load("hrcf-mini", side=56), vlps.load("hrcf-mini")
    assert (vlp.N, vlp.side, vlp.trained) == (7, 56, own.trained)
    rows = own.model.visual.positional_embedding
    assert_close(vlp.model.visual.positional_embedding, enlarged(rows, 7), **CLOSE)
    assert vlps.load("hrcf-mini", side=112).hash == own.hash


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("tiny-resnet", 100, "side = 100: tiny-resnet cuts pictures into positions of 32 pixels; give a multiple: 96"),
        ("RN50", 16, "RN50 cuts pictures into positions of 32 pixels; give a multiple: 32"),
        ("ViT-B-16", 450, "side = 450: ViT-B-16 cuts pictures into patches of 16 pixels; give a multiple: 448"),
        ("hrcf-mini", 4, "side = 4: hrcf-mini cuts pictures into patches of 8 pixels; give a multiple: 8"),
    ],
)
def test_a_side_that_does_not_divide_is_refused(name, side, message):
    with pytest.raises(ValueError, match=message):
        vlps.load(name, "/nowhere", side=side)


def test_names_of_models():
    for name in ("RN50", "RN101", "RN50-quickgelu", "RN101-quickgelu", "RN50x4", "RN50x16", "RN50x64"):
        assert not vlps.is_vit(name)
    assert vlps.is_vit("ViT-B-16") and vlps.is_vit("hrcf-mini")
    for name, reason in ("ViT-B-16-SigLIP", "timm_model_name"), ("coca_ViT-B-32", "multimodal_cfg"):
        with pytest.raises(ValueError, match=f"{name} is not a ViT .*, nor CLIP's own ResNet.*{reason}"):
            vlps.is_vit(name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side", "N", "D"), [("RN50-quickgelu", None, 7, 1024), ("RN101", 448, 14, 512)])
def test_real_shapes(tmp_path, name, side, N, D):
    path = as_half(tiny_resnet.stir(vlps.load(name, pretrained=False).model).state_dict(), tmp_path)
    vlp = vlps.load(name, path, side=side)
    assert (vlp.C, vlp.D, vlp.N, vlp.text_width, vlp.side) == (2048, D, N, 512, 32 * N)
    images = pictures(1, vlp.side)
    trunk = vlp.trunk(images)
    assert trunk.shape == (1, 1 + N * N, 2048) and vlp.dense(trunk).shape == (1, N * N, D)
    alike(vlp.teacher(trunk), vlp.model.encode_image(vlp.normalise(images)))


# The text side --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_every_kind_are_those_of_whole_sentences(vlp, kind):
    prompt = PromptLearner(vlp, kind)
    t = prompt(vlp, NAMES)
    assert_close(t, plain.label_embeddings(prompt, vlp, NAMES), rtol=1e-4, atol=1e-5)
    counts = {"fixed": 0, "learnable": 12 * 48, "hybrid": 8 * 48, "coop": 8 * 48, "tuning": 49408 * 48}
    assert sum(p.numel() for p in prompt.parameters()) == counts[kind] and t.shape == (4, 32)


@pytest.mark.parametrize("columns", [None, [2, 0, 1, 3]])
def test_contexts_are_as_wide_as_the_text_tower(vlp, columns):
    contexts = Contexts(vlp, M=4, number=4 if columns else 1)
    assert contexts.vectors.shape == (4 if columns else 1, 4, 48)
    assert contexts(vlp, NAMES, columns).shape == (4, 32)


# Methods --------------------------------------------------------------------------------------------------------------


def build(name, checkpoint, **changes):
    own = {"vlp": tiny_resnet.NAME, "vlp_weights": str(checkpoint), "test_size": 4}
    config = synthetic.config(**own, phases=(("hcg", 2, 4), ("prompts", 1, 4)), warmup_epochs=0.0)
    categories = {"categories": synthetic.SPACE.seen} if name in methods.names("missing_labels") else {}
    return methods.build(name, config, **categories, **changes)


def features(vlp, n=8):
    """What the tower says of n pictures, with random labels."""
    trunk = vlp.trunk(pictures(n, vlp.side))
    return dataclasses.replace(synthetic.features(n), trunk=trunk.half(), teacher=vlp.teacher(trunk))


@pytest.mark.parametrize("name", VIT_ONLY)
def test_a_method_that_needs_a_vit_says_so_before_it_looks_for_weights(name):
    title = methods.method(name).title
    with pytest.raises(
        ValueError, match=f"{title} uses blocks of a ViT, .* RN50 is a ResNet.*set vlp to a ViT such as"
    ):
        methods.build(name, synthetic.config(vlp="RN50", vlp_weights="/nowhere"))


def test_blocks_of_a_resnet_cannot_be_trained():
    class Trains(Template):
        trained_blocks = 1

    with pytest.raises(ValueError, match="Template uses blocks of a ViT, .* tiny-resnet is a ResNet"):
        Trains(TemplateConfig.of(synthetic.config(vlp=tiny_resnet.NAME)), pretrained=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", EITHER)
def test_every_other_method_learns_is_scored_and_comes_back(name, checkpoint, tmp_path):
    model = build(name, checkpoint, side=128)  # 16 positions
    assert not model.needs_vit and model.trained_blocks == 0
    data, before = features(model.vlp), synthetic.weights(model)
    train(model, data)
    assert name == "pre_clip" or not synthetic.same(before, synthetic.weights(model))
    assert synthetic.same(before, synthetic.weights(model), "vlp.")
    labels = model.reference_labels[:3]
    s = model.score(pictures(2, 128), labels)
    assert s.shape == (2, 3) and s.isfinite().all()
    table = evaluation.evaluate(model, data, tasks=("seen",))
    assert table["mAP"].between(0, 100).all()
    assert_close(methods.load(model.save_pretrained(tmp_path / "saved")).score(pictures(2, 128), labels), s)


def test_the_side_of_a_config_reaches_vlp_data_and_saved_models(checkpoint, tmp_path):
    model = build("asl", checkpoint, side=96)
    assert (model.vlp.side, model.vlp.N) == (96, 3)
    data = sources.source(model, "test", cache=tmp_path / "cache")
    assert data.batch(torch.arange(2))[0].shape == (2, 1 + 9, 256)
    folder = model.save_pretrained(tmp_path / "saved")
    assert methods.load(folder).vlp.side == 96
    with pytest.raises(ValueError, match=r"give the same VLP \(vlp, vlp_weights, side\)"):
        methods.load(folder, side=64)


def test_stored_features_are_what_the_tower_says(checkpoint, tmp_path):
    model = build("pre_clip", checkpoint)
    dataset = benchmarks.open_split(model.config, "test", side=64)
    for _ in range(2):  # computed, then read
        data = sources.source(model, "test", cache=tmp_path)
        assert data.trained_blocks == 0 and data.trunk[torch.arange(4)].dtype == torch.float16
        images = torch.stack([dataset[i][0] for i in range(4)])
        trunk = model.vlp.trunk(images)
        assert_close(data.batch(torch.arange(4))[0], trunk, rtol=2**-11, atol=1e-6)
        alike(data.teacher, model.vlp.teacher(trunk))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pre_clip", "dual_coop"])
def test_grad_cam_looks_at_the_last_map(name, checkpoint):
    model, images = build(name, checkpoint), pictures()
    model.reference_labels = labels = model.config.categories[:4] if name == "dual_coop" else tuple(NAMES[:3])
    maps = grad_cam(model, images, labels[:2])
    assert maps.shape == (2, 2, 64, 64) and maps.min() == 0 and maps.amax() <= 1
    words = beside_reference(model, labels[:2])
    t = model.label_embeddings(words.names).detach()
    for b in range(2):
        positions = model.vlp.trunk(images[[b]])[:, 1:].requires_grad_()  # (1, 4, C)
        tokens = torch.cat([positions.mean(dim=1, keepdim=True), positions], dim=1)
        s = model.score_embeddings(*model.image_embeddings(tokens), t)
        for i, k in enumerate(words.columns):
            (g,) = torch.autograd.grad(s[0, k], positions, retain_graph=True)
            expected = F.relu(positions[0] @ g[0].mean(dim=0)).view(1, 1, 2, 2)
            expected = F.interpolate(expected, size=(64, 64), mode="bilinear", align_corners=False)[0, 0]
            expected = (expected - expected.min()) / (expected.max() - expected.min()).clamp(min=1e-30)
            assert_close(maps[b, i], expected.detach(), atol=5e-3, rtol=0)


@pytest.mark.slow
def test_a_resnet_goes_to_onnx(checkpoint, tmp_path):
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    model = build("pre_clip", checkpoint)
    model.reference_labels = tuple(NAMES)
    report = onnx.export(model, NAMES[:2], tmp_path / "resnet.onnx")
    assert report and (tmp_path / "resnet.onnx").stat().st_size > 1000

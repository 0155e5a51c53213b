"""HRCF as a whole: what learns and what is frozen, MKT's numbers, and what is saved."""

import json
from pathlib import Path

import golden_clip
import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from hrcf_lib import config as configs
from hrcf_lib import methods, scores, vlp
from hrcf_lib.engine import weights
from hrcf_lib.losses import distillation_loss, ranking_loss
from hrcf_lib.model import HRCF
from hrcf_lib.prompts import PromptLearner

NAMES = ["cat", "polar bear", "bus", "sea", "zebra"]
SIDES = {"block", "ln_post", "gather", "head", "prompt"}


def build(**changes) -> HRCF:
    return HRCF(configs.mini().replace(**changes), pretrained=False)


def pictures(B=2):
    return torch.rand(B, 3, 112, 112, generator=torch.Generator().manual_seed(1))


def count(model, *prefixes):
    return sum(p.numel() for name, p in model.named_parameters() if name.startswith(prefixes) and p.requires_grad)


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# Parameters --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full():
    """The paper's model, CLIP ViT-B/16, with random weights."""
    return HRCF(configs.nus_wide(), pretrained=False)


def test_the_image_side_has_the_papers_number_of_parameters(full):
    assert count(full, "block.") == 7_087_872
    assert count(full, "gather.conv") == 10_618_368
    assert count(full, "gather.norms") == 215_040
    assert count(full, "ln_post.") == 1_536
    assert count(full, "head.") == 393_216
    assert count(full, *configs.TRAINABLE["hcg"]) == 18_316_032  # 18.3 M


def test_the_prompts_have_the_papers_number_of_parameters(full):
    assert count(full, "prompt") == count(full, *configs.TRAINABLE["prompts"]) == 4_096
    numbers = {"fixed": 0, "learnable": 6_144, "coop": 4_096, "tuning": 25_296_896}
    for kind, number in numbers.items():
        assert sum(p.numel() for p in PromptLearner(full.vlp, kind).parameters()) == number


def test_nothing_else_of_the_papers_model_learns(full):
    assert count(full, "") == 18_316_032 + 4_096
    assert sum(p.numel() for p in full.vlp.parameters()) == 149_620_737
    assert full.gather.J == 140 and full.vlp.side == 224


def test_the_names_of_what_learns(full):
    for model in (full, build()):
        learns = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
        frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
        assert learns == SIDES and frozen == {"vlp"}
        sides = sum(configs.TRAINABLE.values(), ())
        assert all(name.startswith(sides) for name in model.trainable_state())


def test_the_vlp_takes_no_gradient_and_stays_in_evaluation_mode():
    model = build().train()
    assert model.block.training and not any(module.training for module in model.vlp.modules())
    before = weights_of(model.vlp)
    labels = torch.tensor([[1, -1, -1, 1, 0], [-1, 1, -1, -1, 1]])
    ranking_loss(model(pictures(), NAMES), labels).backward()
    assert all(p.grad is None for p in model.vlp.parameters())
    got = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    # conv1 waits for conv2 to leave zero; the rest learns from the first step
    assert {n for n, p in model.named_parameters() if p.requires_grad} - got == {
        "gather.conv1.weight",
        "gather.conv1.bias",
    }
    assert all(torch.equal(value, before[name]) for name, value in model.vlp.state_dict().items())  # batch norms too


def test_a_loss_of_label_embeddings_alone_reaches_the_prompt_only():
    model = build()
    model.label_embeddings(NAMES).sin().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"prompt.vectors"}


def test_the_same_seed_builds_the_same_model_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert one.vlp.hash == two.vlp.hash != other.vlp.hash
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


# What it computes --------------------------------------------------------------------------------------------------


def test_the_student_starts_as_the_teacher():
    model = build().eval()
    trunk = model.vlp.trunk(pictures())
    e_g, regions = model.image_embeddings(trunk)
    assert_close(e_g, model.vlp.teacher(trunk), rtol=1e-5, atol=1e-5)
    assert regions.shape == (2, 140, 128)


def test_forward_is_the_sum_of_its_parts():
    model = build().eval()
    t = model.label_embeddings(NAMES)
    e_g, regions = model.image_embeddings(model.vlp.trunk(pictures()))
    kept = scores.select_regions(regions, t, 108)
    expected = scores.fuse(e_g @ t.T, scores.region_score_aggregation(kept @ t.T), model.config.lam)
    assert_close(model(pictures(), NAMES), expected, rtol=1e-5, atol=1e-6)
    assert_close(model(pictures(), t), expected, rtol=1e-5, atol=1e-6)
    bytes_ = (pictures() * 255).round()
    assert_close(model(bytes_.byte(), t), model(bytes_ / 255, t), rtol=1e-5, atol=1e-6)
    assert model(pictures(), ["cat"]).shape == (2, 1)


@pytest.mark.parametrize("hcg, J, kept", [(True, 140, 108), (False, 196, 151)])
def test_regions_are_selected_at_test_time_only(hcg, J, kept, monkeypatch):
    model, seen = build(hcg=hcg), []
    plain = scores.aggregate
    monkeypatch.setattr(scores, "aggregate", lambda regions, t: seen.append(regions.shape[1]) or plain(regions, t))
    with torch.no_grad():
        model.train()(pictures(), NAMES)
        model.eval()(pictures(), NAMES)
        build(hcg=hcg, rss=False).eval()(pictures(), NAMES)
    assert seen == [J, kept, J]


def test_without_hcg_the_regions_are_the_patches():
    model = build(hcg=False)
    assert not any(name.startswith("gather.") for name in model.state_dict())
    trunk = model.vlp.trunk(pictures())
    tokens = model.ln_post(model.block(trunk))
    assert_close(model.image_embeddings(trunk)[1], model.head(tokens[:, 1:]))


def test_more_merges_than_the_grid_can_take_are_refused():
    with pytest.raises(ValueError, match="4 merges of a 14 x 14 grid.*choose 1 to 3"):
        build(merges=4)


# MKT: HRCF without HCG, RSA and RSS is MKT's two-stream head ---------------------------------------------------------


@pytest.fixture
def golden_model(monkeypatch, tmp_path):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "golden-quickgelu", golden_clip.CONFIG)
    weights.write_tensors(golden_clip.state(), tmp_path / "clip.safetensors")
    switches = dict(hcg=False, rsa=False, rss=False, topk=4, lam=0.5, prompt="tuning")
    config = configs.mini().replace(vlp="golden-quickgelu", vlp_weights=str(tmp_path / "clip.safetensors"), **switches)
    model = HRCF(config)
    model.vlp.mean.zero_(), model.vlp.std.fill_(1)  # the golden picture is normalised already
    return model


def test_without_its_own_parts_it_scores_as_mkt(golden_model):
    golden = golden_clip.arrays("mkt_clipvit")
    close = dict(rtol=1e-5, atol=1e-5)
    e_g, regions = golden_model.image_embeddings(golden_model.vlp.trunk(golden["image"]))
    assert_close(e_g, golden["dist_feat"], **close)
    assert_close(regions, golden["pred_feat"], **close)
    assert_close(e_g, golden["clip_encode_image_cls"], **close)
    assert_close(regions, golden["clip_encode_image_patch"], **close)
    assert_close(golden_model.eval()(golden["image"], golden["label_emb"]), golden["score"], **close)
    golden_model.config = golden_model.config.replace(normalize_fusion=False)
    assert_close(golden_model(golden["image"], golden["label_emb"]), golden["score_unnormalised"], **close)
    golden_model.config = golden_model.config.replace(normalize_fusion=True, lam=0.0)
    assert_close(golden_model(golden["image"], golden["label_emb"]), golden["score_global_only"], **close)
    t = golden_model.label_embeddings(golden_clip.NAMES["names"])
    assert_close(t, golden_clip.arrays("mkt_prompt_text")["text_emb"], **close)


def test_its_losses_have_mkts_values_and_gradients(golden_model):
    golden, model = golden_clip.arrays("mkt_clipvit"), golden_model
    model.vlp.requires_grad_(True)  # MKT trains all; here only to compare
    t = golden["label_emb"].clone().requires_grad_()
    e_g, regions = model.image_embeddings(model.vlp.trunk(golden["image"]))
    rank = ranking_loss(model.score_embeddings(e_g, regions, t), golden["labels"])
    kd = distillation_loss(e_g, golden["teacher_feat"])
    assert_close(rank, golden["rank_loss"], rtol=1e-5, atol=0)
    assert_close(kd, golden["dist_loss"], rtol=1e-5, atol=0)
    (rank + kd).backward()
    ours = {
        "grad_label_emb": t.grad,
        "grad_projection_dist": model.head.weight.grad.T,
        "grad_last_block_in_proj": model.block.attn.in_proj_weight.grad,
        "grad_conv1": model.vlp.model.visual.conv1.weight.grad,
    }
    for name, grad in ours.items():
        message = lambda text, name=name: f"{name}: {text}"
        assert_close(grad, golden[name], rtol=1e-4, atol=2e-5 * float(golden[name].abs().max()), msg=message)


# Saving and loading ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini_files(tmp_path_factory):
    """Two files of mini VLP weights that differ."""
    folder, paths = tmp_path_factory.mktemp("vlp"), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made = vlp.create_mini()
        text = "A photo for multi-label classification, there is a in the scene . " + " ".join(NAMES)
        paths.append(str(folder / f"mini{seed}.safetensors"))
        vlp.save_mini_weights(made, paths[-1], torch.tensor(made.tokenizer.encode(text)))
    return paths


@pytest.fixture
def saved(mini_files, tmp_path):
    """A model away from where it started, and the folder it was saved in."""
    model = HRCF(configs.mini().replace(vlp_weights=mini_files[0], lam=0.4)).eval()
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.trainable_state().values():
            value.add_(0.1 * torch.randn(value.shape, generator=g))
    model.reference_labels = ("cat", "bus", "côté")
    return model, model.save_pretrained(tmp_path / "new" / "run")


def test_a_saved_model_comes_back_with_the_same_scores(saved):
    model, folder = saved
    back = HRCF.from_pretrained(folder)
    assert torch.equal(back(pictures(), NAMES), model(pictures(), NAMES))
    assert back.config == model.config and back.reference_labels == ("cat", "bus", "côté")
    assert not back.training and {n for n, p in back.named_parameters() if not p.requires_grad} == {
        n for n, p in model.named_parameters() if n.startswith("vlp.")
    }
    changed = HRCF.from_pretrained(str(folder), lam=1.0, rss=False)
    assert changed.config == model.config.replace(lam=1.0, rss=False)


def test_only_safetensors_json_and_a_card_are_written_and_not_the_vlp(saved):
    model, folder = saved
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    state = load_file(folder / "model.safetensors")  # raises for anything else
    assert set(state) == set(model.trainable_state()) and not any(name.startswith("vlp.") for name in state)
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert about["config"]["vlp"] == "hrcf-mini" and about["vlp_hash"] == model.vlp.hash


def test_saving_again_replaces_the_files(saved):
    model, folder = saved
    with torch.no_grad():
        model.head.weight += 1
    model.save_pretrained(folder)
    assert torch.equal(HRCF.from_pretrained(folder).head.weight, model.head.weight)


def test_another_vlp_is_refused_with_both_hashes(saved, mini_files):
    model, folder = saved
    other = vlp.load("hrcf-mini", mini_files[1]).hash
    with pytest.raises(
        ValueError, match=f"trained on hrcf-mini with hash {model.vlp.hash}, .* here has {other}: give the same"
    ):
        HRCF.from_pretrained(folder, vlp_weights=mini_files[1])


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, file):
    (saved[1] / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"run holds no {file}: give a folder that save_pretrained wrote"):
        HRCF.from_pretrained(saved[1])


@pytest.mark.parametrize("folder", ["/nowhere", "./runs/nowhere", "runs", "../a/b/c", "runs/nowhere"])
def test_a_folder_that_does_not_exist_is_no_repository(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hrcf_lib.vlp.online", lambda: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match=f"there is no folder {folder} here: correct the path") as error:
        HRCF.from_pretrained(folder)
    assert ("is hf://runs/nowhere" in str(error.value)) == (folder == "runs/nowhere")


def test_a_repository_that_cannot_be_had_is_an_error_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="the Hugging Face hub gave no repository somebody/hrcf-nus: "):
        HRCF.from_pretrained("hf://somebody/hrcf-nus")
    with pytest.raises(ValueError, match="hf://hrcf-nus: give the owner and the name"):
        HRCF.from_pretrained("hf://hrcf-nus")
    with pytest.raises(ValueError, match="given as text, hf://owner/name"):
        HRCF.from_pretrained(Path("hf://somebody/hrcf-nus"))


def test_a_repository_of_the_hub_is_fetched_and_that_is_said_before(saved, monkeypatch, capsys):
    asked = []

    def download(name, **options):
        asked.append((name, options))
        assert "asking the Hugging Face hub for somebody/hrcf-nus" in capsys.readouterr().err
        return str(saved[1])

    monkeypatch.setattr("hrcf_lib.vlp.online", lambda: True)
    monkeypatch.setattr("hrcf_lib.pretrained.snapshot_download", download)
    assert torch.equal(HRCF.from_pretrained("hf://somebody/hrcf-nus").head.weight, saved[0].head.weight)
    assert asked[0][0] == "somebody/hrcf-nus" and set(asked[0][1]["allow_patterns"]) == {
        "config.json",
        "model.safetensors",
        "calibration.json",
    }


@pytest.mark.parametrize(
    "changes, faults",
    [
        ({"merges": 2}, ["unexpected gather.norms.2.weight (128, 2, 2)", "unexpected gather.norms.2.bias (128, 2, 2)"]),
        ({"prompt_vectors": 4}, ["prompt.vectors is (8, 128), expected (4, 128)"]),
        ({"prompt": "learnable"}, ["missing prompt.template (4, 128)"]),
    ],
)
def test_weights_that_do_not_fit_the_config_are_listed_by_names_and_shapes(saved, changes, faults):
    with pytest.raises(ValueError) as error:
        HRCF.from_pretrained(saved[1], **changes)
    lines = str(error.value).splitlines()
    assert "model.safetensors: these weights do not fit the config" in lines[0]
    assert sorted(line.strip() for line in lines[1:]) == sorted(faults)


def test_a_model_is_unchanged_after_weights_that_do_not_fit(saved):
    model, folder = saved
    state = load_file(folder / "model.safetensors")
    state = {name: value + 1 for name, value in state.items()} | {"head.weight": torch.zeros(128, 64)}
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"head.weight is \(128, 64\), expected \(128, 128\)"):
        model.load_trainable(state, "here")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_weights_cannot_be_slipped_in(saved):
    model, folder = saved
    before = model.vlp.hash
    model.load_trainable(load_file(folder / "model.safetensors") | {"vlp.model.ln_final.bias": torch.ones(128)}, "here")
    assert model.vlp.hash == before


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", "[" * 100_000, '{"config": {"name": "mini"}, "vlp_hash": "", "reference_labels": []}']
)
def test_a_config_that_is_none_is_named(saved, text):
    (saved[1] / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json is not a config of save_pretrained"):
        HRCF.from_pretrained(saved[1])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"reference_labels": "abc"}, "its reference_labels is 'abc', where a list should be"),
        ({"reference_labels": ["cat", ["dog"]]}, "its reference_labels.1. is .'dog'., not a string; give every"),
        ({"reference_labels": ["cat", ""]}, "its reference_labels.1. is blank .''.; name the label"),
        ({"config": []}, "its config is '..', where a dict should be"),
        ({"vlp_hash": 3}, "its vlp_hash is '3', where a str should be"),
        ({"method": ["hrcf"]}, "its method is .*, where a str should be"),
    ],
)
def test_a_part_of_a_config_of_another_kind_is_named(saved, change, message):
    path = saved[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    for load in (HRCF.from_pretrained, methods.load):
        with pytest.raises(ValueError, match=f"config.json is not a config of save_pretrained: {message}"):
            load(saved[1])


def test_unknown_changes_and_damaged_weights_are_refused(saved):
    with pytest.raises(ValueError, match="'lamda'"):
        HRCF.from_pretrained(saved[1], lamda=0.5)
    path = saved[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="model.safetensors cannot be read as plain tensors"):
        HRCF.from_pretrained(saved[1])
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds weights and the config of two models"):
        HRCF.from_pretrained(saved[1])
    config = saved[1] / "config.json"  # as it was saved before there were hashes
    config.write_text(json.dumps(json.loads(config.read_text()) | {"weights_hash": None}))
    with pytest.raises(ValueError, match=r"unexpected a \(1,\)"):
        HRCF.from_pretrained(saved[1])

"""The frozen VLP: equal to open_clip's and MKT's towers, and every way in which its weights may be missing or wrong."""

import logging
import warnings

import clip_files
import golden_clip
import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from hrcf_lib import vlp as vlps

CLOSE = dict(rtol=1e-5, atol=1e-5)
TEXTS = ["cat", "a photo of a polar bear.", "A photo for multi-label classification, there is a bus."]


@pytest.fixture(scope="module")
def mini():
    """The mini VLP with random weights, batch norms included."""
    torch.manual_seed(0)
    vlp = vlps.create_mini()
    for module in vlp.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return vlp.freeze()


def pictures(B=2, side=112):
    return torch.rand(B, 3, side, side, generator=torch.Generator().manual_seed(1))


# The towers --------------------------------------------------------------------------------------------------------


def test_the_towers_compute_what_open_clip_computes(mini):
    images = pictures()
    assert_close(mini.encode_image(images), mini.model.encode_image((images - 0.5) / 0.25), **CLOSE)
    assert_close(mini.encode_text(TEXTS), mini.model.encode_text(mini.tokenizer(TEXTS)), **CLOSE)
    assert_close(mini.encode_text(text for text in TEXTS), mini.encode_text(TEXTS))


def test_the_towers_compute_what_mkt_computes():
    vlp, golden = golden_clip.vlp(), golden_clip.arrays("open_clip_vs_mkt")
    image = golden_clip.arrays("mkt_clipvit")["image"]
    ours = vlp.encode_image(image)
    assert_close(ours, golden["mkt_image_cls"], **CLOSE)
    assert_close(ours, golden["openclip_image_cls"], **CLOSE)
    tokens = golden["tokens"].long()
    t = vlps.encode_tokens(vlp.model, vlp.model.token_embedding(tokens), tokens.argmax(dim=-1))
    assert_close(t, golden["mkt_text"], **CLOSE)
    assert_close(t, golden["openclip_text"], **CLOSE)
    assert not torch.allclose(ours, golden["openclip_image_cls_plain_gelu"], atol=1e-3)  # the test can tell


def test_what_follows_the_end_never_matters(mini):
    table = mini.model.token_embedding
    ids = torch.tensor([[mini.tokenizer.sot_token_id, 5, 6, mini.tokenizer.eot_token_id]])
    short = vlps.encode_tokens(mini.model, table(ids), torch.tensor([3]))
    padded = torch.cat([table(ids), 100 * torch.randn(1, 7, 128)], dim=1)
    assert_close(vlps.encode_tokens(mini.model, padded, torch.tensor([3])), short, **CLOSE)


def test_trunk_and_teacher_have_the_promised_shapes(mini):
    assert (mini.C, mini.D, mini.N, mini.side, mini.context_length) == (128, 128, 14, 112, 32)
    trunk = mini.trunk(pictures())
    assert trunk.shape == (2, 1 + 14 * 14, 128) and mini.teacher(trunk).shape == (2, 128)


def test_bytes_and_fractions_are_the_same_picture(mini):
    images = (pictures() * 255).round()
    assert_close(mini.normalise(images.byte()), mini.normalise(images / 255))
    assert mini.normalise(torch.ones(1, 3, 112, 112)).unique().tolist() == [2.0]  # (1 - 0.5) / 0.25


@pytest.mark.parametrize("shape", [(3, 112, 112), (1, 1, 112, 112), (1, 3, 224, 224), (1, 3, 112, 100)])
def test_pictures_of_another_shape_are_refused(mini, shape):
    fix = "resize them" if len(shape) == 4 else r"images\[None\] is a batch of one"
    with pytest.raises(ValueError, match=rf"hrcf-mini takes pictures \(B, 3, 112, 112\), got .*; {fix}"):
        mini.trunk(torch.zeros(shape))


def test_floats_up_to_255_are_refused(mini):
    with pytest.raises(ValueError, match="float in 0..1 or uint8 in 0..255, got floats up to 255; divide by 255"):
        mini.trunk(torch.full((1, 3, 112, 112), 255.0))


def test_the_marks_of_a_texts_ends_are_no_words(mini):
    with pytest.raises(ValueError, match="'<end_of_text>', '<start_of_text> owl': holds the mark of a text's start"):
        mini.spelt(["owl", "<end_of_text>", "<start_of_text> owl"])


def test_whole_numbers_other_than_bytes_are_refused(mini):
    with pytest.raises(ValueError, match="uint8 in 0..255 or float in 0..1, got torch.int64"):
        mini.trunk(torch.zeros(1, 3, 112, 112, dtype=torch.long))


@pytest.mark.parametrize("texts", [[], "cat"])
def test_no_text_and_a_bare_string_are_refused(mini, texts):
    with pytest.raises(ValueError, match="give a list of at least one sentence"):
        mini.encode_text(texts)


def test_a_sentence_too_long_is_refused_by_name(mini):
    assert mini.encode_text(["cat " * 30]).shape == (1, 128)
    with pytest.raises(ValueError, match="'cat cat.* needs 33 tokens, the text tower takes 32"):
        mini.encode_text(["dog", "cat " * 31])


def test_a_frozen_vlp_takes_no_gradient_and_stays_in_evaluation_mode(mini):
    mini.train()
    assert not any(module.training for module in mini.modules())
    assert not any(p.requires_grad for p in mini.parameters())
    assert not mini.encode_text(["cat"]).requires_grad


def test_the_mini_can_be_trained_before_it_is_frozen():
    vlp = vlps.create_mini().train()
    assert vlp.training and vlp.model.visual.conv1[1].training and all(p.requires_grad for p in vlp.parameters())


def test_the_hash_covers_all_that_an_embedding_depends_on(mini):
    before = mini.hash
    assert before == mini.hash and len(before) == 16 and int(before, 16)
    for change in [mini.model.ln_final.bias, mini.model.visual.conv1[1].running_mean, mini.std]:
        old = change.clone()
        with torch.no_grad():
            change[0] += 1e-3
            assert mini.hash != before
            change.copy_(old)
    assert mini.hash == before
    quick, plain = golden_clip.vlp(), golden_clip.vlp()
    assert quick.hash == plain.hash and quick.quick_gelu
    for block in [*plain.model.visual.transformer.resblocks, *plain.model.transformer.resblocks]:
        block.mlp.gelu = torch.nn.GELU()
    assert not plain.quick_gelu and quick.hash != plain.hash


def test_building_leaves_warnings_of_others_alone():
    root, level = logging.getLogger(), logging.getLogger().level
    vlps.create_mini()
    assert root.level == level and root.isEnabledFor(logging.WARNING)


# Weights of the mini -----------------------------------------------------------------------------------------------


@pytest.fixture
def mini_file(mini, tmp_path):
    path = tmp_path / "mini.safetensors"
    rows = torch.tensor(sorted({i for text in TEXTS for i in mini.tokenizer.encode(text)}))
    vlps.save_mini_weights(mini, path, rows)
    return path


def test_the_mini_comes_back_in_half_precision_with_the_rows_it_knows(mini, mini_file):
    back = vlps.load("hrcf-mini", str(mini_file))
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in back.parameters())
    assert_close(back.encode_text(TEXTS), mini.encode_text(TEXTS), rtol=0.01, atol=0.01)
    assert_close(back.encode_image(pictures()), mini.encode_image(pictures()), rtol=0.01, atol=0.01)
    tokenizer, table = back.tokenizer, back.model.token_embedding.weight
    assert {tokenizer.sot_token_id, tokenizer.eot_token_id} < back.trained
    assert {int(i) for i in table.abs().sum(dim=1).nonzero()} == back.trained
    assert vlps.load("hrcf-mini", mini_file).hash == back.hash != mini.hash  # half precision is another VLP
    with pytest.raises(ValueError, match="'a photo of a zebra.': .*never trained on 'zebra'"):
        back.encode_text(["a photo of a zebra."])


def test_the_file_of_the_mini_is_small(mini, tmp_path):
    vlps.save_mini_weights(mini, tmp_path / "mini.safetensors", torch.arange(1500))
    assert (tmp_path / "mini.safetensors").stat().st_size < 10e6


def test_a_missing_file_of_the_mini_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="nowhere.safetensors: no weights of the mini VLP; notebook 02 makes them"
    ):
        vlps.load("hrcf-mini", str(tmp_path / "nowhere.safetensors"))


def test_a_file_that_does_not_fit_the_mini_is_listed_and_changes_nothing(mini, mini_file):
    vlp = vlps.create_mini()
    before, state = vlp.hash, load_file(mini_file)
    del state["token_rows"]
    state["ln_final.bias"] = torch.zeros(7)
    state["extra"] = torch.zeros(2, 3)
    save_file(state, mini_file)
    with pytest.raises(ValueError) as error:
        vlps.load_mini_weights(vlp, mini_file)
    for part in [
        str(mini_file),
        "missing token_embedding.weight (49408, 128)",
        "unexpected extra (2, 3)",
        "ln_final.bias is (7,), expected (128,)",
    ]:
        assert part in str(error.value)
    assert vlp.hash == before and vlp.trained is None


# Weights of open_clip's models: names and tags -----------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, an empty cache, and a failure if anybody tries to download all the same."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *_: pytest.fail("tried to download"))
    return tmp_path / "hub"


@pytest.mark.parametrize(
    "tag, file, name",
    [
        ("openai", "timm/vit_base_patch16_clip_224.openai open_clip_model.safetensors", "'ViT-B-16-quickgelu'"),
        ("laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K open_clip_model.safetensors", "'ViT-B-16'"),
    ],
)
def test_without_network_and_cache_the_error_comes_at_once_and_says_what_to_do(offline, monkeypatch, tag, file, name):
    asked = []
    monkeypatch.setattr("hrcf_lib.vlp.online", lambda: asked.append(tag))
    with pytest.raises(OSError) as error:
        vlps.load("ViT-B-16", tag)
    assert len(asked) == 1, "one question and no download: the hub's own client would retry for a minute"
    for part in [
        f"'{tag}' of ViT-B-16",
        f"hf download {file}",
        str(offline),
        f"vlp_weights to its path and vlp to {name}",
    ]:
        assert part in str(error.value)


def test_one_question_tells_whether_the_hub_answers(monkeypatch):
    class Session:
        asked = []

        def head(self, url, timeout):
            self.asked.append((url, timeout))
            raise ConnectionError

    monkeypatch.setattr("hrcf_lib.vlp.get_session", Session)
    assert not vlps.online(seconds=3)
    assert Session.asked == [(huggingface_hub.constants.ENDPOINT, 3)]
    monkeypatch.setattr(Session, "head", lambda self, url, timeout: "any answer, even an error page")
    assert vlps.online()


def test_a_download_that_breaks_is_an_os_error_with_its_reason(offline, monkeypatch):
    def broken(tag):
        raise RuntimeError("No space left on device")

    monkeypatch.setattr("hrcf_lib.vlp.online", lambda: True)
    monkeypatch.setattr(open_clip, "download_pretrained", broken)
    with pytest.raises(OSError, match="could not be downloaded .No space left on device."):
        vlps.load("ViT-B-16", "openai")


@pytest.mark.parametrize(
    "name, tag, kind, message",
    [
        ("ViT-B/16", "openai", ValueError, "open_clip knows no model 'ViT-B/16'; did you mean 'ViT-B-16'?"),
        ("zebra", "openai", ValueError, "see open_clip.list_models"),
        (
            "ViT-B-16-SigLIP",
            "webli",
            ValueError,
            "is not a ViT with a class token, nor CLIP.s own ResNet.*timm_model_name",
        ),
        ("coca_ViT-B-32", "laion2b_s13b_b90k", ValueError, "multimodal_cfg"),
        ("ViT-B-16", None, ValueError, "ViT-B-16 without vlp_weights: give a tag .openai, "),
        (
            "ViT-B-16",
            "opnai",
            OSError,
            "'opnai': no such file, and no tag of open_clip's ViT-B-16; did you mean 'openai'?",
        ),
        (
            "ViT-B-16",
            "/nowhere/b16.pt",
            OSError,
            "'/nowhere/b16.pt': no such file, and no tag .*; tags: openai, laion400m",
        ),
        ("ViT-B-16", ".", OSError, "'.': the folder has none of open_clip_model.safetensors"),
        ("ViT-B-16", "", ValueError, "vlp_weights is an empty text: give a path"),
        ("ViT-B-16", "https://example.org/b16.pt", ValueError, "vlp_weights is the address .*nothing is downloaded"),
    ],
)
def test_names_that_nothing_answers_to(offline, name, tag, kind, message):
    with pytest.raises(kind, match=message):
        vlps.load(name, tag)


# Weights of open_clip's models: files --------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch):
    """The tiny CLIP as two models of open_clip, with GELU and with QuickGELU."""
    plain = {key: value for key, value in golden_clip.CONFIG.items() if key != "quick_gelu"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "golden", plain)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "golden-quickgelu", golden_clip.CONFIG)


def embed(vlp):
    """Embeddings of the golden picture, which is normalised already."""
    return vlp.encode_image(golden_clip.arrays("mkt_clipvit")["image"] * vlp.std + vlp.mean)


def as_safetensors(state, folder):
    save_file(state, folder / "clip.safetensors")
    return folder / "clip.safetensors"


def as_half(state, folder):
    return as_safetensors({name: value.half() for name, value in state.items()}, folder)


def as_pytorch(state, folder):
    sizes = {
        "input_resolution": torch.tensor(56),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    torch.save(state | sizes, folder / "clip.pt")  # as OpenAI's state dicts have them
    return folder / "clip.pt"


def as_training_checkpoint(state, folder):
    state = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}}, folder / "epoch_3.pt")
    return folder / "epoch_3.pt"


def as_compiled(state, folder):
    torch.save({"model": {f"module._orig_mod.{name}": value for name, value in state.items()}}, folder / "clip.pt")
    return folder / "clip.pt"


def as_openai(state, folder):
    return clip_files.openai(state, folder / "ViT-B-16.pt", half=False)


def as_hugging_face(state, folder):
    return clip_files.save_hugging_face(state, folder)


def as_hugging_faces_folder(state, folder):
    return clip_files.save_hugging_face(state, folder / "clip-vit", safe=False).parent


FORMS = [as_safetensors, as_half, as_pytorch, as_training_checkpoint, as_compiled, as_openai, as_hugging_face]


@pytest.mark.parametrize("write", [*FORMS, as_hugging_faces_folder])
def test_a_checkpoint_on_disk_is_loaded(registered, tmp_path, write):
    vlp = vlps.load("golden-quickgelu", str(write(golden_clip.state(), tmp_path)))
    assert_close(embed(vlp), golden_clip.arrays("open_clip_vs_mkt")["mkt_image_cls"], **CLOSE)
    assert not any(p.requires_grad for p in vlp.parameters()) and not vlp.training
    assert vlp.hash == vlps.load("golden-quickgelu", write(golden_clip.state(), tmp_path)).hash


@pytest.mark.parametrize("write", [as_openai, as_hugging_face, as_hugging_faces_folder])
def test_a_file_that_names_its_activation_is_believed(registered, tmp_path, write):
    vlp = vlps.load("golden", write(golden_clip.state(), tmp_path))
    assert vlp.quick_gelu and vlp.name == "golden"
    assert_close(embed(vlp), golden_clip.arrays("open_clip_vs_mkt")["openclip_image_cls"], **CLOSE)


def test_half_precision_as_openai_stores_it_is_loaded_in_single(registered, tmp_path):
    vlp = vlps.load("golden", clip_files.openai(golden_clip.state(), tmp_path / "ViT-B-16.pt"))
    assert {p.dtype for p in vlp.parameters()} == {torch.float32}
    assert vlp.hash == vlps.load("golden-quickgelu", as_half(golden_clip.state(), tmp_path)).hash


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("golden", as_pytorch, "clip.pt: OpenAI trained with QuickGELU, golden has GELU; use golden-quickgelu"),
        (
            "golden",
            lambda state, folder: clip_files.save_hugging_face(state, folder, gelu=None),
            "model.safetensors: OpenAI trained with QuickGELU, golden has GELU; use golden-quickgelu",
        ),
        (
            "golden-quickgelu",
            lambda state, folder: clip_files.save_hugging_face(state, folder, gelu="gelu"),
            "model.safetensors: trained with GELU, golden-quickgelu has QuickGELU; use golden$",
        ),
    ],
    ids=["state dict", "no config", "GELU"],
)
def test_a_file_that_may_have_another_activation_is_told(registered, tmp_path, name, write, message):
    with pytest.warns(UserWarning, match=message):
        vlps.load(name, write(golden_clip.state(), tmp_path))


def test_of_a_file_the_model_name_decides_on_the_activation(registered, tmp_path):
    (tmp_path / "openai").mkdir()
    path = as_safetensors(golden_clip.state(), tmp_path / "openai")
    golden = golden_clip.arrays("open_clip_vs_mkt")
    with pytest.warns(UserWarning, match="OpenAI trained with QuickGELU, golden has GELU; use golden-quickgelu"):
        plain = vlps.load("golden", path)
    assert_close(embed(plain), golden["openclip_image_cls_plain_gelu"], **CLOSE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick = vlps.load("golden-quickgelu", path)
    assert_close(embed(quick), golden["openclip_image_cls"], **CLOSE)
    assert plain.hash != quick.hash


def test_a_tag_in_the_cache_needs_no_network_and_brings_activation_and_statistics(registered, offline, monkeypatch):
    tag = {"hf_hub": "somebody/golden.openai/", "quick_gelu": True, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "golden", {"openai": tag})
    with pytest.raises(OSError, match="hf download somebody/golden.openai open_clip_model.safetensors"):
        vlps.load("golden", "openai")
    repository = offline / "models--somebody--golden.openai"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    as_safetensors(golden_clip.state(), repository / "snapshots" / "abc").rename(
        repository / "snapshots" / "abc" / "open_clip_model.safetensors"
    )
    vlp = vlps.load("golden", "openai")
    assert vlp.quick_gelu and vlp.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert_close(embed(vlp), golden_clip.arrays("open_clip_vs_mkt")["openclip_image_cls"], **CLOSE)


def test_a_tag_that_is_downloaded_is_loaded(registered, offline, monkeypatch, tmp_path):
    path = as_safetensors(golden_clip.state(), tmp_path)
    tag = {"hf_hub": "somebody/golden/weights.bin"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "golden", {"ours": tag})
    monkeypatch.setattr("hrcf_lib.vlp.online", lambda: True)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda given: str(path) if given == tag else None)
    assert not vlps.load("golden", "ours").quick_gelu


def test_random_weights_need_no_file(registered, offline):
    torch.manual_seed(0)
    assert vlps.load("golden", "/nowhere", pretrained=False).hash != golden_clip.vlp().hash


def test_a_checkpoint_of_another_model_is_listed_by_names_and_shapes(registered, tmp_path):
    state = golden_clip.state()
    del state["visual.proj"]
    state |= {"text_projection": torch.zeros(64, 16), "extra.weight": torch.zeros(5)}
    with pytest.raises(ValueError) as error:
        vlps.load("golden", as_safetensors(state, tmp_path))
    for part in [
        "clip.safetensors: these weights do not fit the config",
        "missing visual.proj (64, 32)",
        "unexpected extra.weight (5,)",
        "text_projection is (64, 16), expected (64, 32)",
    ]:
        assert part in str(error.value)
    assert len(str(error.value).splitlines()) == 4


def test_all_texts_that_the_tower_never_saw_are_named():
    mini = vlps.create_mini()
    mini.trained = set(mini.tokenizer.encode("owl"))
    with pytest.raises(
        ValueError, match=r"'zqx': the text tower of \S+ was never trained on .*, 'wolf': 'wolf'; use words"
    ):
        mini.spelt(["owl", "zqx", "wolf"])
    assert mini.spelt(["owl"]) == [mini.token_ids("owl")]

"""Weights of CLIP under each of their names are those of open_clip's model; what is said of the activation."""

import clip_files
import golden_clip
import open_clip
import pytest
import torch

from hrcf_lib.engine import clip_weights


def test_each_form_is_the_same_state():
    state = golden_clip.state()
    for form in (
        state,
        clip_files.hugging_face(state),
        {f"text.{n}" if n[0] != "v" else n: v for n, v in state.items()},
    ):
        form.pop("text.logit_scale", None)
        found = clip_weights.open_clip_names(form)
        assert found.keys() | {"logit_scale"} == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in found.items())


def hugging_face_names(blocks: int = 12) -> dict[str, tuple[int, ...]]:
    """Names and shapes of ``openai/clip-vit-base-patch16``, written out."""
    shapes = {
        "logit_scale": (),
        "visual_projection.weight": (512, 768),
        "text_projection.weight": (512, 512),
        "text_model.embeddings.token_embedding.weight": (49408, 512),
        "text_model.embeddings.position_embedding.weight": (77, 512),
        "text_model.embeddings.position_ids": (1, 77),
        "vision_model.embeddings.class_embedding": (768,),
        "vision_model.embeddings.patch_embedding.weight": (768, 3, 16, 16),
        "vision_model.embeddings.position_embedding.weight": (197, 768),
        "vision_model.embeddings.position_ids": (1, 197),
    }
    norms = {"text_model.final_layer_norm": 512, "vision_model.pre_layrnorm": 768, "vision_model.post_layernorm": 768}
    layers = {name: (width,) for name, width in norms.items()}
    for tower, C in (("text_model", 512), ("vision_model", 768)):
        for i in range(blocks):
            at = f"{tower}.encoder.layers.{i}."
            layers |= {f"{at}self_attn.{which}_proj": (C, C) for which in ("k", "v", "q", "out")}
            layers |= {f"{at}layer_norm1": (C,), f"{at}layer_norm2": (C,)}
            layers |= {f"{at}mlp.fc1": (4 * C, C), f"{at}mlp.fc2": (C, 4 * C)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def test_the_names_of_the_real_model_become_those_of_open_clips():
    with torch.device("meta"):
        expected = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16")).state_dict()
        found = clip_weights.open_clip_names({n: torch.empty(shape) for n, shape in hugging_face_names().items()})
    assert len(hugging_face_names()) == 400
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in expected.items()}


def test_a_third_of_an_attention_layer_that_is_missing_is_told_by_its_own_name():
    state = clip_files.hugging_face(golden_clip.state())
    del state["text_model.encoder.layers.1.self_attn.k_proj.bias"]
    found = clip_weights.open_clip_names(state)
    assert "transformer.resblocks.1.attn.in_proj_bias" not in found
    assert "text_model.encoder.layers.1.self_attn.q_proj.bias" in found


@pytest.mark.parametrize(
    "gelu, says, openai",
    [
        ("quick_gelu", True, False),
        ("default", True, False),
        ("gelu", False, False),
        (None, None, True),
    ],
)
def test_the_config_beside_hugging_faces_weights_names_the_activation(tmp_path, gelu, says, openai):
    found = clip_weights.read(clip_files.save_hugging_face(golden_clip.state(), tmp_path, gelu))
    assert (found.quick_gelu, found.maybe_openai) == (says, openai)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"vision_config": 3, "text_config": {}}'])
def test_a_config_of_another_kind_says_nothing(tmp_path, content):
    path = clip_files.save_hugging_face(golden_clip.state(), tmp_path)
    (tmp_path / "config.json").write_text(content)
    assert clip_weights.read(path).quick_gelu is None


@pytest.mark.parametrize(
    "how, says",
    [({}, True), ({"sizes": False, "gelu": "quick"}, True), ({"sizes": False}, None)],
    ids=["OpenAI's", "QuickGELU", "plain"],
)
def test_an_archive_names_its_activation(tmp_path, how, says):
    found = clip_weights.read(clip_files.openai({"a": torch.ones(2)}, tmp_path / "w.pt", **how))
    assert found.quick_gelu is says and found.state.keys() == {"a"}

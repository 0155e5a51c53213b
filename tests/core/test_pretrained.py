"""The model card: it says what is known, has numbers as given with their protocol, and claims nothing else."""

import copy
import json
import re

import pandas as pd
import pytest
import synthetic
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from hrcf_lib import config as configs
from hrcf_lib import methods, pretrained, protocols
from hrcf_lib.engine import files
from hrcf_lib.evaluation import metrics_row
from hrcf_lib.training import history_frame

NOISE = "30% of the positive training labels were dropped"  # in ``mini``
SEEN = tuple(f"thing {i}" for i in range(12))


@pytest.fixture(scope="module")
def model():
    model = synthetic.model(lam=0.4)
    model.reference_labels = SEEN
    return model


@pytest.fixture
def table():
    """As ``evaluate`` makes it, of random scores."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randn(20, 6, generator=rng).sign()
    rows = {task: metrics_row(torch.randn(20, 6, generator=rng), labels, (1, 2)) for task in ("ZSL", "GZSL")}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")


def sections(made: ModelCard) -> dict[str, str]:
    """Title -> text of the card's sections."""
    parts = re.split(r"^## (.*)\n", made.text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_a_card_without_metrics_claims_no_number(model):
    made = pretrained.model_card(model)
    assert made.data.eval_results is None and "model-index" not in made.content
    assert sections(made)["Evaluation"].strip() == "No numbers were given."
    assert "Training" not in sections(made) and not re.search("mAP|F1|%", made.content.replace(NOISE, ""))


def test_the_front_is_read_back_as_the_hub_reads_it(model, table, tmp_path):
    folder = model.save_pretrained(tmp_path, metrics={"test": table})
    data = ModelCard.load(folder / "README.md").data  # parses the YAML again
    assert (data.library_name, data.pipeline_tag) == ("hrcf", "zero-shot-image-classification")
    assert data.license == "cc-by-sa-4.0" and {"open-vocabulary", "hrcf"} <= set(data.tags)
    assert data.base_model is None and data.model_name == "HRCF on MojiScenes"
    found = {(r.dataset_config, r.metric_type): r for r in data.eval_results}
    metrics = [name for name in table if name not in ("protocol", "images", "labels")]
    assert {"mAP", "F1@2"} <= set(metrics) and set(found) == {(t, m) for t in table.index for m in metrics}
    for (task, metric), result in found.items():
        assert result.metric_value == table.loc[task, metric], "as given, not rounded"
        assert result.metric_args == {"protocol": "per_class"} and result.dataset_split == "test"
        assert result.dataset_type == "mojiscenes"


def test_the_text_shows_numbers_with_their_protocol(model, table):
    text = sections(pretrained.model_card(model, {"test": table, "test-line": table}))["Evaluation"]
    assert "Split `test`" in text and "Split `test-line`" in text
    for value in table["mAP"]:
        assert f"| {value:.2f} |" in text
    assert f"* `per_class`: {protocols.named('per_class').words}." in text
    assert "the split was not named" in sections(pretrained.model_card(model, table))["Evaluation"]


def test_a_metric_that_is_missing_is_left_out_and_not_made_up(model, table):
    table.loc["ZSL", "mAP"] = float("nan")
    made = pretrained.model_card(model, table)
    values = {(r.dataset_config, r.metric_type) for r in made.data.eval_results}
    assert ("GZSL", "mAP") in values and ("ZSL", "mAP") not in values and "nan" not in made.content


def test_a_table_of_a_record_will_do(model, table):
    assert pretrained.model_card(model, table.reset_index()).content == pretrained.model_card(model, table).content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="protocol"), "without a column 'protocol'"),
        (lambda t: t.to_dict(), "without a column 'protocol'"),
        (lambda t: t.assign(protocol="per_clas"), "did you mean 'per_class'"),
        (lambda t: t[["protocol", "images"]], "no number in its columns"),
        (lambda t: t.reset_index(drop=True), "rows have no task"),
    ],
)
def test_metrics_that_are_refused_before_anything_is_written(model, table, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "new", metrics={"test": change(table)})
    assert not (tmp_path / "new").exists()


def test_it_says_what_the_model_is_and_was_trained_on(model):
    made = pretrained.model_card(model)
    text, data = made.text, sections(made)["Data"]
    assert "hierarchical region clues" in text and "`lam = 0.4`" in text and f"hash `{model.vlp.hash}`" in text
    assert "MojiScenes" in data and "at most 8,000" in data and "12 seen labels" in data and NOISE in data
    assert ", ".join(SEEN[:10]) + ", ..." in data and SEEN[10] not in text
    assert "OpenMoji" in sections(made)["Licence"] and "not probabilities" in sections(made)["Limits"]
    compile(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], "card", "exec")


def test_an_untrained_model_is_not_said_to_be_trained():
    text = sections(pretrained.model_card(synthetic.model()))["Data"]
    assert "No training is on record" in text and "seen labels:" not in text


def test_a_method_has_its_own_words_and_tag():
    made = pretrained.model_card(methods.build("mkt", synthetic.config(), pretrained=False))
    assert "multi-modal knowledge transfer" in made.text and "mkt" in made.data.tags
    assert made.text.lstrip().startswith("# MKT on MojiScenes")


def test_other_data_and_a_clip_have_no_licence_unless_it_is_said():
    clip, config = synthetic.model(), configs.nus_wide()
    clip.config, clip.vlp.name = config, config.vlp  # what a card reads of them; the towers may be small
    made = pretrained.model_card(clip)
    assert made.data.license is None and "Weights: not stated" in made.text and "OpenMoji" not in made.text
    assert made.data.base_model == "timm/vit_base_patch16_clip_224.openai"
    assert pretrained.model_card(clip, licence="mit").data.license == "mit"
    own = pretrained.model_card(clip, licence="Terms of Us").data.to_dict()
    assert (own["license"], own["license_name"]) == ("other", "Terms of Us")
    clip.config = config.replace(vlp_weights="/home/somebody/secret/clip.pt")
    made = pretrained.model_card(clip)
    assert "somebody" not in made.content and "`clip.pt`" in made.text and made.data.base_model is None


def test_training_is_told_by_phase(model):
    row = lambda step, i, side, loss: (step, i, side, 0.5, 1e-3, loss, 0.1, 2.0, 0.0)
    history = history_frame([row(1, 0, "hcg", 3.0), row(2, 0, "hcg", 2.5), row(3, 1, "prompts", 2.25)], model)
    text = sections(pretrained.model_card(model, training=history))["Training"]
    assert "| 0 | hcg | 2 | 2.5 | 0.1 |" in text and "| 1 | prompts | 1 | 2.25 | 0.1 |" in text
    assert "Training" not in sections(pretrained.model_card(model, training=history[:0]))
    assert "* device: a CPU" in sections(pretrained.model_card(model, training={"device": "a CPU"}))["Training"]


def test_a_card_of_somebody_elses_stays(model, tmp_path):
    model.save_pretrained(tmp_path)
    own = tmp_path / "README.md"
    assert pretrained.MARK in own.read_text(encoding="utf-8")
    own.write_text("# mine", encoding="utf-8")
    with pytest.warns(UserWarning, match="README.md was not written by save_pretrained and stays"):
        model.save_pretrained(tmp_path)
    assert own.read_text(encoding="utf-8") == "# mine"
    own.write_text(pretrained.MARK, encoding="utf-8")
    model.save_pretrained(tmp_path)
    assert "HRCF on MojiScenes" in own.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name, shown",
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[click](javascript:x)", r"\[click\](javascript:x)"),
        ("a|b*c*_d_`e`", r"a\|b\*c\*\_d\_\`e\`"),
        ("two\nlines\n# title", "two lines # title"),
        ("{{ config.name }}", "{{ config.name }}"),
        ("\\$x$ ~~y~~ & z", r"\\\$x\$ \~\~y\~\~ &amp; z"),
    ],
)
def test_names_are_text_and_no_markup(table, name, shown):
    made = synthetic.model()
    made.reference_labels = (name, *SEEN)
    table.insert(0, "note", name)
    card = pretrained.model_card(made, {"test": table}, training={name: "a value"}, licence=name)
    parts = sections(card)
    for title, around in (
        ("Data", "config.json`): {}, thing 0"),
        ("Evaluation", "| ZSL | {} |"),
        ("Training", "* {}: a value"),
        ("Licence", "* Weights: {}."),
    ):
        assert around.format(shown) in parts[title]
    assert ModelCard(card.content).data.license_name == name, "the front is data, not text"


def test_backticks_do_not_end_code():
    assert pretrained.code("a") == "`a`" and pretrained.code("a`b``c") == "``` a`b``c ```"


# -- what is on disk ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    """With the VLP that ships, so that a folder of it can be loaded."""
    return methods.registry.for_config(configs.mini())


@pytest.fixture
def saved(whole, tmp_path):
    return whole.save_pretrained(tmp_path / "saved")


def other(model):
    """A model of the same shapes with other weights."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.head.weight.add_(1)
    return model


@pytest.mark.parametrize("killed_at", ["config.json", "README.md"])
def test_a_model_saved_over_another_and_killed_in_between_does_not_load(whole, saved, monkeypatch, killed_at):
    """Or is the new one, where its card alone is missing."""
    real = files.replacing

    def dies(path, *more):
        if path.name == killed_at:
            raise KeyboardInterrupt
        return real(path, *more)

    (saved / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(files, "replacing", dies)
        with pytest.raises(KeyboardInterrupt):
            other(whole).save_pretrained(saved)
    if killed_at == "config.json":
        with pytest.raises(ValueError, match="holds weights and the config of two models, as when saving was"):
            methods.load(saved)
        other(whole).save_pretrained(saved)
    assert torch.equal(methods.load(saved).head.weight, other(whole).head.weight) and (saved / "notes.txt").exists()
    assert not list(saved.glob("*.part"))


def test_a_new_folder_is_whole_or_not_there(model, tmp_path, monkeypatch):
    def dies(*_):
        assert not (tmp_path / "new").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "write_card", dies)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["flipped", "cut", "foreign", "of another model"])
def test_damaged_weights_are_named(whole, saved, tmp_path, how):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    if how == "of another model":
        other(whole).save_pretrained(tmp_path / "other")
        content = (tmp_path / "other" / "model.safetensors").read_bytes()
    elif how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:-1], "foreign": b"hello"}.get(how, content))
    with pytest.raises(ValueError, match="model.safetensors (is|cannot be read.*) .*(damaged|another file)"):
        methods.load(saved)


def test_a_model_saved_before_there_were_hashes_loads(whole, saved):
    about = json.loads((saved / "config.json").read_text())
    del about["weights_hash"]
    (saved / "config.json").write_text(json.dumps(about))
    save_file(whole.trainable_state(), saved / "model.safetensors")
    assert torch.equal(methods.load(saved).head.weight, whole.head.weight)


def test_a_cell_with_a_bar_does_not_break_its_table():
    text = pretrained.markdown(pd.DataFrame({"a|b": ["x|y"], "c": [1.5]}))
    assert text.splitlines() == ["| a\\|b | c |", "| --- | --- |", "| x\\|y | 1.5 |"]


def test_the_card_says_how_pictures_are_made_square(model):
    words = "shorter side resized (bicubic), centre cut out (`resize = crop`)"
    assert f"pictures of 112 x 112 pixels: {words}" in pretrained.model_card(model).content
    squashed = model.under(model.config.replace(resize="squash"))
    assert "resized to the square (bicubic) (`resize = squash`)" in pretrained.model_card(squashed).content

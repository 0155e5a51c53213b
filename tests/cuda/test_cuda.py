"""Each path on CUDA against the CPU: the same numbers, within a bound that stands beside each comparison.

``python -m hrcf_lib.speed.gpu`` runs these, and so does ``pytest -m cuda``.
"""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from hrcf_lib import config as configs
from hrcf_lib import losses, methods, metrics, scores, training
from hrcf_lib.apply import grad_cam
from hrcf_lib.apply.explorer import Session
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.model import HRCF

pytestmark = pytest.mark.cuda

NAMES = ["owl", "pizza", "bus", "cat", "dog"]
EXACT = {"atol": 2e-5, "rtol": 1e-4}  # float32 on both; sums are taken in another order
ROUNDED = 0.02  # of the largest value: bfloat16 keeps 8 bits, over twelve blocks


def pictures(n: int = 4, side: int = 112) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(B: int, K: int) -> Tensor:
    y = torch.where(torch.rand(B, K, generator=torch.Generator().manual_seed(1)) < 0.2, 1, -1)
    y[:, 0] = 1
    return y


@pytest.fixture(scope="module")
def here() -> HRCF:
    """The VLP that ships with an HRCF of random regions, on the CPU, in float32."""
    model = HRCF(configs.mini().replace(bf16=False)).eval()
    with torch.no_grad():
        model.gather.conv2.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def there(here, device) -> HRCF:
    return copy.deepcopy(here).to(device)


@torch.no_grad()
def test_trunk_teacher_and_regions(here, there, device):
    x = here.vlp.trunk(pictures())
    assert_close(there.vlp.trunk(pictures()).cpu(), x, **EXACT)
    assert_close(there.vlp.teacher(x.to(device)).cpu(), here.vlp.teacher(x), **EXACT)
    for ours, expected in zip(there.image_embeddings(x.to(device)), here.image_embeddings(x)):
        assert_close(ours.cpu(), expected, **EXACT)


def test_text_tower_and_gradients_of_the_prompt(here, there):
    gradients = []
    for model in (here, there):
        training.only(model, "prompts")
        t = model.label_embeddings(NAMES)
        t.square().sum().backward()
        gradients.append([t.detach().cpu(), model.prompt.vectors.grad.cpu()])
        model.prompt.zero_grad(set_to_none=True)
    assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_text_tower_of_whole_sentences(here, there):
    texts = [f"a photo of a {name}." for name in NAMES]
    assert_close(there.vlp.encode_text(texts).cpu(), here.vlp.encode_text(texts), **EXACT)


@pytest.mark.parametrize(("B", "K"), [(3, 7), (8, 2000)])
def test_scores_and_their_gradients(B, K, device):
    """The smaller fits a tensor of all region scores, the larger is computed in chunks that are recomputed."""
    config, found = configs.mini(), []
    for at in ("cpu", device):
        e_g, regions, t = (
            normal(*shape, seed=n).to(at).requires_grad_()
            for n, shape in enumerate([(B, 64), (B, scores.REGIONS, 64), (K, 64)])
        )
        s = scores.score(e_g, regions, 0.1 * t, config, select=False)
        (s * normal(B, K, seed=9).to(at)).sum().backward()
        selected = scores.score(e_g, regions, 0.1 * t, config, select=True)
        found.append([x.detach().cpu() for x in (s, selected, e_g.grad, regions.grad, t.grad)])
    assert_close(found[1], found[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("reduction", ["violations", "pairs", "sum"])
@pytest.mark.parametrize(("B", "K"), [(4, 30), (32, 7186)])
def test_ranking_loss_and_its_gradient(B, K, reduction, device):
    found = []
    for at in ("cpu", device):
        s = torch.nn.functional.normalize(normal(B, K)).to(at).requires_grad_()
        loss = losses.ranking_loss(s, labels(B, K).to(at), reduction)
        loss.backward()
        found.append([loss.detach().cpu(), s.grad.cpu()])
    assert_close(found[1], found[0], atol=1e-5, rtol=1e-3)


def test_metrics(device):
    s, y = normal(300, 20), labels(300, 20)
    s = (10 * s).round() / 10  # with ties
    assert_close(metrics.average_precision(s.to(device), y.to(device)).cpu(), metrics.average_precision(s, y))
    for k in (3, 5):
        expected = metrics.precision_recall_f1_at_k(s, y, k)
        assert metrics.precision_recall_f1_at_k(s.to(device), y.to(device), k) == pytest.approx(expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bfloat16", "TF32"])
def test_rounded_products_stay_near(kind, here, there):
    if kind == "TF32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # until the fixture ends
    rounded = there.under(there.config.replace(bf16=kind == "bfloat16"))
    for ours, expected in zip(rounded.embed(pictures()), here.embed(pictures())):
        assert (ours.cpu() - expected).abs().max() <= ROUNDED * expected.abs().max()


@pytest.mark.parametrize("name", methods.names("compared"))
def test_every_method_scores_the_same(name, device):
    model = methods.build(name, synthetic.config(), pretrained=False).eval()
    expected = model.score(pictures(), NAMES)
    assert_close(copy.deepcopy(model).to(device).score(pictures(), NAMES).cpu(), expected, atol=1e-3, rtol=1e-3)


def test_a_model_saved_on_one_is_read_on_the_other(there, here, tmp_path):
    there.reference_labels = tuple(NAMES)
    again = HRCF.from_pretrained(there.save_pretrained(tmp_path))
    assert synthetic.same(synthetic.weights(again.cpu()), synthetic.weights(here))


def test_batches_come_from_pinned_memory(device):
    features = synthetic.features()
    pinned = [all(x.is_pinned() for x in inputs) for _, inputs, _ in features.batches(BatchOrder(2))]
    assert all(pinned) if device.type == "cuda" else not any(pinned)


def test_grad_cam(here, there):
    for model in (here, there):
        model.reference_labels = tuple(NAMES)
    expected, ours = (grad_cam.grad_cam(model, pictures(2), ["owl", "bus"]) for model in (here, there))
    assert_close(ours.cpu(), expected.cpu(), atol=1e-2, rtol=0)  # in 0..1


def test_the_explorer_rescores_what_it_embedded(here, there):
    tables = []
    for model in (here, there):
        model.reference_labels = tuple(NAMES)
        session = Session(model)
        session.see(Image.fromarray(pictures(1)[0].permute(1, 2, 0).numpy()))
        session.ask(["owl", "zebra"])
        tables.append(session.table(lam=0.25, keep=50))
    assert tables[0]["label"].tolist() == tables[1]["label"].tolist()
    assert tables[1]["score"].tolist() == pytest.approx(tables[0]["score"].tolist(), abs=1e-4)


# Whole runs, in processes of their own --------------------------------------------------------------------------------

RUNS = Path(__file__).parent / "runs.py"


def started(word: str, folder: Path, **surroundings: str) -> subprocess.Popen:
    python_path = os.pathsep.join([str(RUNS.parents[2]), str(RUNS.parents[1])])
    env = os.environ | {"PYTHONPATH": python_path} | surroundings
    return subprocess.Popen([sys.executable, str(RUNS), word, str(folder)], env=env)


def finished(word: str, folder: Path, **surroundings: str) -> None:
    assert started(word, folder, **surroundings).wait(timeout=300) == 0


def weights_of(folder: Path, name: str = "weights.pt") -> dict[str, Tensor]:
    return torch.load(folder / name, weights_only=True)


def near(a: dict, b: dict, bound: float) -> None:
    for name in a:
        assert_close(a[name], b[name], atol=bound, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


CPU = {"ACCELERATE_USE_CPU": "true"}
STEP = 2e-3  # Adam moves a weight by about its learning rate, whatever the size of a gradient that is rounding


@pytest.mark.slow
def test_a_run_is_taken_up_on_the_other_device(device, tmp_path):
    for name, first, second in (("there", {}, CPU), ("here", CPU, {})):
        folder = tmp_path / name
        folder.mkdir()
        finished("half", folder, **first)
        finished("whole", folder, **second)
    (alone := tmp_path / "alone").mkdir()
    finished("whole", alone, **CPU)
    for name in ("there", "here"):
        near(weights_of(tmp_path / name), weights_of(alone), STEP)


@pytest.mark.slow
def test_a_killed_run_goes_on(device, tmp_path):
    for name in ("killed", "unbroken"):
        (tmp_path / name).mkdir()
    assert started("killed", tmp_path / "killed").wait(timeout=300) == -signal.SIGKILL
    finished("whole", tmp_path / "killed")
    finished("whole", tmp_path / "unbroken")
    near(weights_of(tmp_path / "killed"), weights_of(tmp_path / "unbroken"), STEP)


@pytest.mark.slow
def test_two_processes_on_one_device(device, tmp_path):
    (one := tmp_path / "one").mkdir()
    (two := tmp_path / "two").mkdir()
    finished("whole", one)
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [started("two", two, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    near(weights_of(two), weights_of(one), STEP)
    assert json.loads((two / "state.json").read_text()) == {"processes": 2, "backend": "gloo", "device": device.type}


@pytest.mark.slow
def test_workers_give_the_pictures_that_one_process_gives(device, tmp_path):
    finished("workers", tmp_path)  # compares them

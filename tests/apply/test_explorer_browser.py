"""The explorer in JupyterLab, as a user has it: a real browser types, points and presses keys."""

import socket

import pytest

pytest.importorskip("jupyterlab", reason="JupyterLab comes with the extra 'notebooks'")
pytest.importorskip("websocket", reason="websocket-client comes with JupyterLab")

import explorer_browser
from explorer_browser import explored, until

CELLS = "[...jupyterapp.shell.widgets('main')].find(w => w.sessionContext).content.widgets.length"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(explorer_browser.find_browser() is None, reason="no Chromium or Chrome (Debian: chromium)"),
]


@pytest.fixture(scope="module")
def lab():
    """The explorer after a run of all cells, at a port that was taken; and its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with explored(port, HRCF_SIZE="smoke") as (found, url):
            yield found, url, port


@pytest.mark.slow
def test_a_port_in_use_is_passed_over(lab):
    _, url, port = lab
    assert url.startswith("http://127.0.0.1:") and f":{port}/" not in url


def test_a_typed_label_gets_a_bar_and_pointing_at_it_a_map(lab, tmp_path):
    found, _, _ = lab
    assert "umbrella" not in found.labels()
    found.type(", umbrella")
    found.wait_for("umbrella")
    assert found.message() == ""
    assert found.overlay("umbrella") == 0
    before = found.page.picture(found.clip())
    found.page.point(found.row("umbrella"))
    until(lambda: found.overlay("umbrella") == 1, "the map of umbrella")
    after = found.page.picture(found.clip())
    assert before.size == after.size and before.tobytes() != after.tobytes()
    after.save(tmp_path / "explorer.png")
    assert (tmp_path / "explorer.png").stat().st_size > 10_000


def test_a_refused_label_leaves_a_message_and_the_last_result(lab):
    found, _, _ = lab
    before = found.labels()
    found.type(", hrcfquux,")
    until(lambda: "was never trained on" in found.message(), "the message")
    assert found.labels() == before
    for _ in "hrcfquux,":
        found.page.press("Backspace")
    until(lambda: not found.message(), "the message to go")


def test_the_keyboard_is_enough(lab):
    """Tab goes from the labels over the sliders to the bars; keys of the notebook do nothing meanwhile."""
    found, _, _ = lab
    page, cells = found.page, lab[0].page.evaluate(CELLS)
    page.point(found.TEXT)
    page.click(found.TEXT)
    page.press("Tab")
    until(lambda: page.evaluate("document.activeElement.classList.contains('noUi-handle')"), "the first slider")
    page.press("ArrowRight")
    until(lambda: "scores: probabilities are calibrated" in status(page), "scores under another lambda")
    for _ in range(12):
        page.press("Tab")
        if page.evaluate("document.activeElement.matches('.hrcf-explored li')"):
            break
    assert page.evaluate("document.activeElement.matches('.hrcf-explored li:first-child')"), "a label has the focus"
    until(lambda: found.overlay(found.labels()[0]) == 1, "the map of the label in focus")
    for key in ("a", "ArrowDown", "d", "d"):
        page.press(key)
    assert page.evaluate("document.activeElement.matches('.hrcf-explored li:first-child')")
    page.press("Tab")
    until(lambda: found.overlay(found.labels()[1]) == 1, "the map of the next label")
    assert found.overlay(found.labels()[0]) < 1 and page.evaluate(CELLS) == cells


def status(page) -> str:
    return page.evaluate("document.querySelector('.hrcf-status').textContent")

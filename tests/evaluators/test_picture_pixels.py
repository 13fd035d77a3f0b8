"""Pictures of every kind as a judge sees them: never a silent 0 for what a person can read."""

from __future__ import annotations

import io
import json
import struct
import zlib
from random import Random

import numpy as np
import pytest
from command import opdbench
from PIL import Image, ImageDraw, ImageFont

from opdbench.evaluation.picture_pixels import open_picture
from opdbench.evaluators.geneval.judge import GenEval
from opdbench.evaluators.loading.pictures import letterboxed, read_look, unfit
from opdbench.evaluators.preference.judge import Preference
from opdbench.registry import evaluator
from opdbench.tiny.prompts import geneval_prompts


def draw(mode="RGB", paper="white", ink="black", text="HELLO"):
    image = Image.new(mode, (256, 256), paper)
    ImageDraw.Draw(image).text((40, 96), text, fill=ink, font=ImageFont.load_default(48))
    return image


def grey():
    return np.asarray(draw("L"))


def save_mid(path):
    """White is 40767 of 65535, black 8000: the same word with less contrast."""
    values = grey().astype(np.uint32) * 257 // 2 + 8000
    Image.fromarray(values.astype(np.uint16)).save(path)


SAVE = {
    "grey16.png": lambda path: Image.fromarray(grey().astype(np.uint16) * 257).save(path),
    "grey16.tif": lambda path: Image.fromarray(grey().astype(np.uint16) * 257).save(path),
    "mid.png": save_mid,
    "float.tif": lambda path: Image.fromarray(grey().astype(np.float32) / 255).save(path),
    "bytes.tif": lambda path: Image.fromarray(grey().astype(np.float32)).save(path),
    "clear.png": lambda path: draw("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)).save(path),
    "clear.webp": lambda path: draw("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)).save(path, lossless=True),
    "grey-clear.png": lambda path: draw("LA", (0, 0), (0, 255)).save(path),
    "palette.png": lambda path: draw().quantize(16).save(path, transparency=0),
    "bit.png": lambda path: draw("1", 1, 0).save(path),
    "cmyk.jpg": lambda path: draw().convert("CMYK").save(path, quality=95),
    "plain.png": lambda path: draw().save(path),
}


def test_a_word_is_read_whatever_its_files_kind(tmp_path):
    for name, save in SAVE.items():
        save(tmp_path / name)
    raw = (tmp_path / "plain.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(raw[: len(raw) // 2])
    rows = [{"image": name, "prompt": 'A sign that says "HELLO"'} for name in (*SAVE, "cut.png")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = opdbench("eval", "--pictures", "rows.jsonl", "--tasks", "ocr", "--format", "json", cwd=tmp_path)
    assert done.returncode == 1
    whole = json.loads(done.stdout)[0]
    assert (whole["value"], whole["n"], whole["unscored"]) == (1.0, len(SAVE), 1)
    assert "unscored by ocr: cut.png: cannot read the picture" in done.stderr
    assert whole["key"].startswith("ocr@2[")
    assert whole["key"].endswith(" pictures@2")


def test_values_are_scaled_and_alpha_lies_over_white(tmp_path):
    for name in ("grey16.png", "grey16.tif", "float.tif", "bytes.tif"):
        SAVE[name](tmp_path / name)
        assert np.array_equal(np.asarray(open_picture(tmp_path / name))[..., 0], grey()), name
    Image.new("RGBA", (20, 20), (100, 0, 200, 128)).save(tmp_path / "half.png")
    assert open_picture(tmp_path / "half.png").getpixel((0, 0)) == (177, 127, 227)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((10, 20), 65535, np.uint16)).save(tmp_path / "turned.png", exif=exif)
    assert open_picture(tmp_path / "turned.png").size == (10, 20)


@pytest.mark.parametrize("top", [-1.0, 1000.0, float("nan")])
def test_values_without_a_known_white_are_not_guessed(tmp_path, top):
    values = np.zeros((32, 32), np.float32)
    values[0, 0] = top
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(OSError, match="white is unknown"):
        open_picture(tmp_path / "a.tif")
    Image.fromarray(values.astype(np.int32) if top == top else np.full((9, 9), 1 << 20, np.int32)).save(
        tmp_path / "b.tif"
    )
    with pytest.raises(OSError, match="white is unknown"):
        open_picture(tmp_path / "b.tif")


def bomb(width, height):
    """A PNG of a few bytes whose header asks for so many grey pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(16000, 12000), (9000, 9000), (1 << 30, 1 << 30)])
def test_a_decompression_bomb_is_unscored_and_the_others_are_scored(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(bomb(*size))
    draw().save(tmp_path / "ok.png")
    rows = [{"image": name, "prompt": 'A sign "HELLO"'} for name in ("bomb.png", "ok.png")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = opdbench("eval", "--pictures", "rows.jsonl", "--tasks", "ocr", "--format", "json", cwd=tmp_path)
    whole = json.loads(done.stdout)[0]
    assert (done.returncode, whole["value"], whole["n"], whole["unscored"]) == (1, 1.0, 1, 1)
    assert "bomb.png" in done.stderr
    assert "pixels" in done.stderr


def test_damaged_files_are_os_errors(tmp_path):
    """Seeded damage of six formats, in their headers above all."""
    rng, opened, refused = Random(0), 0, 0
    sources = []
    for name in ("palette.png", "grey16.tif", "float.tif", "cmyk.jpg", "clear.webp"):
        SAVE[name](tmp_path / name)
        sources.append((name, (tmp_path / name).read_bytes()))
    stream = io.BytesIO()
    draw("P", 255, 0).save(stream, "GIF")
    sources.append(("a.gif", stream.getvalue()))
    for _ in range(600):
        name, content = rng.choice(sources)
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 5)):
            damaged[min(len(damaged) - 1, int(rng.expovariate(1 / 60)))] = rng.randrange(256)
        path = tmp_path / f"damaged-{name}"
        path.write_bytes(damaged)
        try:
            assert open_picture(path).mode == "RGB"
            opened += 1
        except OSError:
            refused += 1
    assert opened > 50
    assert refused > 50


@pytest.mark.parametrize("task", ["preference", "geneval", "ocr"])
def test_tiny_pictures_are_unscored_and_the_others_are_scored(tmp_path, task):
    prompt = next(p for p in geneval_prompts("test") if p.spec["tag"] == "single_object")
    rows = []
    for width, height in ((1, 1), (8, 8), (2000, 17), (64, 64), (256, 256)):
        Image.new("RGB", (width, height), "white").save(tmp_path / f"{width}x{height}.png")
        rows.append({**prompt.spec, "image": f"{width}x{height}.png", "prompt": f'{prompt.text} "HI"'})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = opdbench("eval", "--pictures", "rows.jsonl", "--tasks", task, "--format", "json", cwd=tmp_path)
    whole = json.loads(done.stdout)[0]
    unscored = 0 if task == "ocr" else 3
    assert (whole["n"], whole["unscored"], done.returncode) == (5 - unscored, unscored, int(bool(unscored)))
    for name in ("1x1.png", "8x8.png", "2000x17.png")[:unscored]:
        assert f"{name}: " in done.stderr


def test_the_longest_picture_that_is_judged_has_a_row_of_pixels_left():
    long = Image.new("RGB", (1600, 16))
    assert not unfit(long, "x")
    look = read_look("x", Preference()._checkpoints[0].source)
    assert letterboxed([long], look).shape == (1, 3, look.size, look.size)
    prompt = geneval_prompts("test")[0]
    assert GenEval().score([long], [prompt])[0].value is not None
    (score,) = evaluator("diversity").score([Image.new("RGB", (1601, 16))], [prompt])
    assert "ratio" in score.reason

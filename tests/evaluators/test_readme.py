"""evaluators/README.md: its table has every judge and version, and its 15 lines are a judge that scores."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
from command import opdbench
from PIL import Image

from opdbench.core import ANY_SIDE, metric_key
from opdbench.evaluators.vlm.judges import JUDGES
from opdbench.files import parse_toml
from opdbench.registry import evaluator, names

README = Path(__file__).resolve().parents[2] / "evaluators" / "README.md"


def section(title):
    return README.read_text(encoding="utf-8").partition(f"## {title}")[2].partition("\n## ")[0]


def versions(name):
    """Versions on small and on large pictures, as the code has them."""
    if name in JUDGES:
        return {JUDGES[name].version}
    if name == "ocr-paddle":  # its engine need not be installed
        return versions("ocr")
    judge = evaluator({"control": "control:contrast", "dial": "dial:b:area:1:0.5"}.get(name, name))
    return {int(re.search(r"@(\d+)\[", metric_key(judge, side))[1]) for side in (64, ANY_SIDE)}


def test_the_table_has_every_judge_with_its_versions():
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d, ]+) \|", section("The judges"), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted([*names("evaluators"), *names("judges")])
    for name, shown in rows:
        assert {int(version) for version in shown.split(",")} == versions(name), name


def install(site, code, entry):
    """The files that an installer writes: the module and what it says about its distribution."""
    about = site / "brightness-0.1.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (site / "brightness.py").write_text(code)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: brightness\nVersion: 0.1\n")
    groups = parse_toml(entry)["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (about / "entry_points.txt").write_text("\n".join(lines))


def test_the_judge_of_15_lines_scores_and_its_changed_code_scores_again(tmp_path, monkeypatch):
    code, entry = re.findall(r"```(?:python|toml)\n(.*?)```", section("Add a judge in 15 lines"), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 15
    Image.fromarray(np.full((64, 64, 3), 51, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "prompt": "anything"}')
    site = tmp_path / "site"
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two sources of one length within a second share a cache
    monkeypatch.syspath_prepend(site)
    args = ["eval", "--pictures", "rows.jsonl", "--tasks", "brightness", "--format", "json"]
    for factor, want in ((255, 0.2), (510, 0.1)):
        install(site, code.replace("255", str(factor)), entry)
        sys.modules.pop("brightness", None)
        importlib.invalidate_caches()
        done = opdbench(*args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (row,) = json.loads(done.stdout)
        assert (round(row["value"], 6), row["n"]) == (want, 1)
    sys.modules.pop("brightness", None)

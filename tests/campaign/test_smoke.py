"""One short case of the campaign, in every test run, so that the campaign itself keeps working."""

from __future__ import annotations

import json
from random import Random

from campaign_commands import commands, differing
from campaign_damages import BINARY, TEXT, ways
from command import opdbench


def test_each_damage_changes_a_file_and_is_seen(tmp_path):
    """Each way once on the rows of an evaluation: the same numbers again, and the damaged file beside them."""
    words = commands(tmp_path)["pictures"]
    words[words.index("ocr,preference")] = "preference"
    whole = opdbench(*words, "--out", tmp_path / "runs")
    assert whole.returncode == 0, whole.stderr
    (path,) = (tmp_path / "runs").glob("*/preference-*.jsonl")
    assert set(ways(path)) == set(TEXT) > set(BINARY)
    rows, expected = path.read_bytes(), json.loads(whole.stdout)
    for name, damage in TEXT.items():
        path.write_bytes(rows)
        damage(path, Random(name))
        assert not path.exists() or path.read_bytes() != rows, name
        again = opdbench(*words, "--out", tmp_path / "runs")
        assert (again.returncode, json.loads(again.stdout)) == (0, expected), name
        assert path.read_bytes() == rows
        assert name in ("gone",) or path.with_name(f"{path.name}.damaged-1").exists(), name
        assert name == "gone" or path.with_name(f"{path.stem}.json.damaged-1").exists(), name
        for kept in tmp_path.rglob("*.damaged-*"):
            kept.unlink()
    assert differing({"rows": 1}, {"rows": 2}) == ["rows"]

"""Runs of schema 1 are found again after they are migrated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from opdbench.errors import UserError
from opdbench.records.digest import FORMAT, digest
from opdbench.records.run import RunRecord
from opdbench.records.store import shipped
from opdbench.runs.migrate import _old_words, migrate, read_config, read_stage

STAMP = "opd-s0"


def age(folder):
    """Turn a run of schema 2 into what the first edition left; returns its new digests."""
    path = folder / "record.json"
    raw = json.loads(path.read_text())
    config = read_config(raw["config"])
    now = {stage["name"]: stage["digest"] for stage in raw["stages"]} | {"": raw["digest"]}
    for stage in raw["config"]["recipe"]["stages"]:
        stage["method"] = stage.pop("loss")
    for stage in raw["stages"]:
        stage["method"], stage["digest"] = stage.pop("loss"), "0" * 16
    for key in ("sha256", "files", "plugins"):
        raw.pop(key, None)
    raw |= {"schema": 1, "digest": "1" * 16, "group": "1" * 16}
    path.write_text(json.dumps(raw))
    old = folder.with_name(f"opd-s0-{'1' * 8}")
    folder.rename(old)
    return config, now, old


def unsealed(folder):
    """A stage's record as the first edition wrote it, without checksums."""
    raw = json.loads((folder / "stage.json").read_text())
    return {key: value for key, value in raw.items() if key not in ("sha256", "files")}


@pytest.fixture
def run(tmp_path):
    source = Path(__file__).parents[2] / "leaderboards" / "results" / "tiny" / STAMP
    return shutil.copytree(source, tmp_path / STAMP)


def test_an_old_record_names_the_command_and_has_its_new_digests_after_it(run, tmp_path):
    _, now, old = age(run)
    with pytest.raises(UserError, match=r"schema 1; expected 2; run `python -m opdbench.runs.migrate"):
        RunRecord.load(old)
    lines = list(migrate(tmp_path))
    record = RunRecord.load(tmp_path / f"opd-s0-{now[''][:8]}")
    assert {stage.name: stage.digest for stage in record.stages} | {"": record.digest} == now
    assert len(lines) == 1
    assert list(migrate(tmp_path)) == [f"opd-s0-{now[''][:8]}: schema 2, left as it is"]


def test_old_stages_get_the_digests_that_the_shipped_ones_have(tmp_path):
    expected = {path.name for path in (shipped() / "stages").iterdir()}
    renamed = {}
    about = map(unsealed, (shipped() / "stages").iterdir())
    for raw in sorted(about, key=lambda raw: raw["stage"]["init"]):
        stage = read_stage(raw["stage"])
        base = digest({"guidance": 3.5})
        needs = [renamed[name] for name in stage.starts] or [base for _ in stage.teachers]
        renamed[stage.name] = digest([FORMAT, _old_words(stage), raw["seed"], raw["model"], needs])
        raw["stage"]["method"] = raw["stage"].pop("loss")
        (tmp_path / "stages" / renamed[stage.name]).mkdir(parents=True)
        (tmp_path / "stages" / renamed[stage.name] / "stage.json").write_text(json.dumps(raw))
    list(migrate(tmp_path))
    assert {path.name for path in (tmp_path / "stages").iterdir()} == expected


def test_a_stage_whose_origin_is_not_here_stays_and_is_named(tmp_path):
    place = tmp_path / "stages" / ("2" * 16)
    place.mkdir(parents=True)
    about = map(unsealed, (shipped() / "stages").iterdir())
    raw = next(raw for raw in about if raw["stage"]["name"] == "teacher-ocr")
    raw["stage"]["method"] = raw["stage"].pop("loss")
    (place / "stage.json").write_text(json.dumps(raw))
    assert list(migrate(tmp_path)) == [
        f"stages/{'2' * 16}: not understood, left as it is: what it builds on is not here"
    ]
    assert (place / "stage.json").exists()

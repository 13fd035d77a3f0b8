"""The shipped models name no folder of the machine that made them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdbench.diffusion.sources import EDITIONS, locate
from opdbench.tiny.second.pretrain import without_origin


@pytest.mark.parametrize("edition", sorted(EDITIONS))
def test_no_configuration_names_where_it_came_from(edition):
    configs = list(Path(locate(edition)).rglob("config.json"))
    assert configs
    assert not [path for path in configs if "_name_or_path" in json.loads(path.read_text(encoding="utf-8"))]


def test_the_export_drops_it(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"_name_or_path": "/home/me", "sample_size": 64}')
    without_origin(tmp_path)
    assert json.loads((tmp_path / "vae" / "config.json").read_text(encoding="utf-8")) == {"sample_size": 64}

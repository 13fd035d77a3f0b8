"""Intervals over seeds and prompts, and joint rates, against simulation and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from opdbench.leaderboards.numbers.crossed import RowFiles, TaskPictures, crossed_figure, joint_rates, worst_share


def pictures(rng, seeds=6, prompts=30, by_seed=0.1, by_prompt=0.5, noise=0.3, share=0.7):
    """One task whose teachers gain exactly 1 and whose method's share is drawn around `share`."""
    shape = (seeds, prompts)
    gaps = share + rng.normal(0, by_seed, (seeds, 1)) + rng.normal(0, by_prompt, (1, prompts))
    origin = rng.normal(0, 1, (1, prompts)) + np.zeros(shape)
    return TaskPictures(origin + gaps + rng.normal(0, noise, shape), origin, origin + 1.0)


def test_the_interval_covers_new_seeds_and_new_prompts():
    rng, inside, narrow = np.random.default_rng(0), 0, 0
    for _ in range(60):
        task = pictures(rng)
        figure = crossed_figure([task])
        inside += abs(figure.value - 0.7) <= figure.error
        seeds = (task.result - task.origin).mean(1)
        narrow += abs(figure.value - 0.7) <= 2.57 * seeds.std(ddof=1) / np.sqrt(6)
    assert inside / 60 >= 0.87
    assert narrow / 60 < 0.85  # over seeds alone, as the prompts are always the same


def test_the_value_is_the_worst_share():
    rng = np.random.default_rng(1)
    low, high = pictures(rng, share=0.2, by_seed=0.0), pictures(rng, share=0.9, by_seed=0.0)
    means = [
        np.stack([getattr(task, name).mean(1) for task in (low, high)], 1) for name in ("result", "origin", "teacher")
    ]
    assert crossed_figure([low, high]).value == pytest.approx(worst_share(*means))
    assert crossed_figure([pictures(rng, seeds=1)]).error is None


def test_joint_rates_are_products_over_tasks():
    origin = np.zeros((1, 4))
    first = TaskPictures(np.array([[1.0, 1.0, 0.0, -1.0]]), origin, origin + 1)
    second = TaskPictures(np.array([[1.0, -1.0, -1.0, -1.0]]), origin, origin + 1)
    rates = joint_rates([first, second])
    assert rates.domination.value == pytest.approx(0.5 * 0.25)
    assert rates.collapse.value == pytest.approx(0.25 * 0.75)


def test_rows_are_matched_by_prompt(tmp_path):
    def write(name, scores):
        rows = [
            {"prompt": prompt, "index": k, "value": value}
            for prompt, own in scores.items()
            for k, value in enumerate(own)
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [tmp_path / name]

    result = write("x", {"p": [1.0, 3.0], "q": [5.0], "r": [None]})
    files = RowFiles(
        result, write("o", {"q": [1.0], "p": [0.0], "r": [1.0]}), write("y", {"p": [4.0], "q": [6.0], "r": [1.0]})
    )
    read = files.read()
    assert read.result.tolist() == [[2.0, 5.0]]
    assert read.origin.tolist() == [[0.0, 1.0]]
    assert RowFiles(result, result, [tmp_path / "none"]).read() is None

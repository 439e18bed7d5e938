"""Metrics files."""

from __future__ import annotations

import io
import json
import math

from stemjax import terminal
from stemjax.train import writers


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_json_and_numbers_that_are_not_finite_are_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = writers.JsonLines(path)
    writer.write_scalars(1, {"loss": 0.5, "bad": math.nan})
    writer.write_scalars(2, {"loss": 0.25})
    writer.close()
    assert _lines(path) == [{"step": 1, "loss": 0.5, "bad": None}, {"step": 2, "loss": 0.25}]


def test_resuming_drops_lines_of_steps_that_are_done_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = writers.JsonLines(path)
    for step in (10, 20, 30):
        writer.write_scalars(step, {"loss": float(step)})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 40, "lo')  # a crash in mid-line
    resumed = writers.JsonLines(path, resume_step=20)
    resumed.write_scalars(30, {"loss": -1.0})
    resumed.close()
    assert _lines(path) == [
        {"step": 10, "loss": 10.0},
        {"step": 20, "loss": 20.0},
        {"step": 30, "loss": -1.0},
    ]


def test_tensorboard_files_hold_the_numbers(tmp_path):
    writer = writers.TensorBoard(tmp_path)
    writer.write_scalars(3, {"loss": 0.5})
    writer.close()
    (file,) = tmp_path.glob("events.out.tfevents.*")
    content = file.read_bytes()
    assert b"loss" in content
    assert b"\x00\x00\x00?" in content  # 0.5 as little-endian float32


def test_without_a_terminal_progress_is_plain_lines():
    stream = io.StringIO()
    with terminal.Bar("prepare", stream) as bar:
        for done in (1, 2, 3):
            bar(done, 3, "patches")
        bar(1, 1, "shards")
    assert stream.getvalue().splitlines() == [
        "prepare patches: 1/3",
        "prepare patches: 3/3",
        "prepare shards: 1/1",
    ]


def test_the_training_line_says_loss_speed_and_time_left():
    stream = io.StringIO()
    line = terminal.TrainingLine(10, terminal.Bar("train", stream))
    scalars = {
        "loss": 1.5,
        "steps_per_second": 2.0,
        "spots_per_second": 128.0,
        "eta_seconds": 3661.0,
    }
    line.write_scalars(10, scalars)
    line.write_scalars(10, {"val_mse": 0.25, "val_pcc": 0.5})
    line.close()
    first, second = stream.getvalue().splitlines()
    assert first == "step 10/10  loss 1.5000  2.0 steps/s  128 spots/s  01:01:01 left"
    assert second == "step 10/10  val mse 0.2500 pcc 0.5000"

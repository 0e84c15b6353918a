"""What a log line becomes: a line of JSON, and numbers for the trackers."""

import json
from types import SimpleNamespace

from marcli.training.metrics_log import MetricsLog


def test_trackers_get_the_numbers_there_are(tmp_path):
    told = []
    accelerator = SimpleNamespace(log=lambda numbers, step: told.append((numbers, step)))
    processes = SimpleNamespace(is_main=True, accelerator=accelerator)
    log = MetricsLog(tmp_path / "metrics.jsonl", processes, after_step=4, images_per_step=8)
    log.write({"step": 6, "loss": None, "lr": 1e-3})  # every loss was withheld
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    ((numbers, step),) = told
    assert step == 6 and numbers.keys() == {"lr", "seconds", "images_per_second"}
    assert line == {"step": 6, "loss": None, **numbers}

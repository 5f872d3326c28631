"""Runs graphs by onnxruntime's WebGPU provider without a browser. Started by check_browsers.py, in a Python that has
onnxruntime-webgpu and numpy; it imports nothing else.

    PYTHON webgpu_runs.py FOLDER

FOLDER has `runs.json`, stage -> {graph, inputs, output, keeps} with a graph's path and inputs in `<stage>.npz`; the
output of each is written to `<stage>.npy`, seconds to `seconds.json`.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

folder = Path(sys.argv[1])
cache, seconds = {}, {}
for stage, run in json.loads((folder / "runs.json").read_text()).items():
    start = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(run["graph"], options, providers=["WebGpuExecutionProvider"])
    seconds["load"] = seconds.get("load", 0.0) + time.perf_counter() - start
    start = time.perf_counter()
    feeds = {**cache, **np.load(folder / f"{stage}.npz")}
    names = [output.name for output in session.get_outputs()]
    results = session.run(names, {node.name: feeds[node.name] for node in session.get_inputs()})
    outputs = dict(zip(names, results, strict=True))
    seconds[stage] = time.perf_counter() - start
    np.save(folder / f"{stage}.npy", outputs[run["output"]])
    if run["keeps"]:
        cache = {name.replace("present.", "past_key_values."): value for name, value in outputs.items()}
(folder / "seconds.json").write_text(json.dumps(seconds))

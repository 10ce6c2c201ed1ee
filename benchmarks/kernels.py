"""Where an executable's time goes: ONNX Runtime's own profile, by operator."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import onnxruntime


def kernel_times(
    executable: miaotui.Executable, inputs: dict[str, np.ndarray[Any, Any]], runs: int = 40
) -> dict[str, float]:
    """Milliseconds a run spends in the kernels of each operator, one thread, greatest first."""
    folder = executable.folder
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.enable_profiling = True
    settings.profile_file_prefix = str(Path(tempfile.mkdtemp(), "profile"))
    settings.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder / "weights")
    )
    record = executable.manifest.variants[executable.manifest.default]
    session = onnxruntime.InferenceSession((folder / record.entries["main"]).read_bytes(), settings)
    for _ in range(runs):
        session.run(None, inputs)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]] += event["dur"] / 1e3 / runs
    return dict(times.most_common())

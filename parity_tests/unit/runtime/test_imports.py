"""Starting the command line, the runtime, publishing and fetching need neither torch nor the tools that export."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "onnxsim", "safetensors", "pydantic", "yaml")
PROGRAM = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
try:
    import torch
except ImportError:
    pass
else:
    raise SystemExit("the block does not hold")
import pkgutil
import qwen3vl_export.cli.main
import qwen3vl_export.publishing
import qwen3vl_export.runtime
for module in pkgutil.iter_modules(qwen3vl_export.runtime.__path__):
    __import__(f"qwen3vl_export.runtime.{{module.name}}")
loaded = {{name.split(".")[0] for name in sys.modules}} & set({BLOCKED!r})
assert not loaded, loaded
print("imported")
"""


def test_import_without_torch() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "imported\n", "")

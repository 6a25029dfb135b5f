"""torchtune's own function from its names and rows to PEFT's; its package asks for many more on import."""

from __future__ import annotations

import importlib.util
from pathlib import Path

package = importlib.util.find_spec("torchtune")
assert package is not None and package.submodule_search_locations
file = Path(package.submodule_search_locations[0], "models", "convert_weights.py")
spec = importlib.util.spec_from_file_location("convert_weights", file)
assert spec is not None and spec.loader is not None
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
to_peft = module.tune_to_peft_adapter_weights

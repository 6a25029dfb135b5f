"""`python -m ailora_tools`."""

import os
import sys
from pathlib import Path

# `-m` puts the current folder before all libraries. That may be a downloaded model, with a torch.py in it.
if sys.path[:1] == [os.getcwd()] and Path(__file__).parents[1] != Path.cwd():  # noqa: PTH109, as Python spells it
    del sys.path[0]

from .cli import main

if __name__ == "__main__":
    main()

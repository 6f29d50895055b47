"""The `medflow` command: the same steps as the flows run, for people and scripts.

Exit status: 0 all well; 1 could not run; 2 usage; 3 ran, but something was rejected, failed or died.
"""

import gc

gc.disable()  # what is imported stays: searching it for garbage is a fifth of a command's start
from medflow.cli.app import main  # noqa: E402

gc.enable()
gc.freeze()

__all__ = ["main"]

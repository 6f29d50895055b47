"""The `medflow` command: the same steps as the flows run, for people and scripts.

Exit status: 0 all well; 1 could not run; 2 usage; 3 ran, but something was rejected, failed or died.
"""

from medflow.cli.app import main

__all__ = ["main"]

"""The `medflow` command: the same steps as the flows run, for people and scripts.

Exit status: 0 all well; 1 could not run; 2 usage; 3 ran, but something was rejected, failed or died.
"""

import gc
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line.

    Its modules are imported here and not with this one, which every child process imports again to find this function.
    """
    if "score" in sys.argv:  # others that run models start Prefect first, or stay
        from medflow.inference import apart

        apart.begin()
    gc.disable()  # what is imported stays: searching it for garbage is a fifth of a command's start
    from medflow.cli.app import main as run
    from medflow.garbage import end_without_search

    gc.enable()
    gc.freeze()
    end_without_search()
    run()

"""``python -m medflow.cli``."""

from medflow.cli import main

main()

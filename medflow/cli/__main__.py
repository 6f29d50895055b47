"""``python -m medflow.cli``."""

from medflow.cli.app import main

main()

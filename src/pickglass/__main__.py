"""``python -m pickglass`` is the command ``pickglass``."""

from pickglass.cli.main import main

main()

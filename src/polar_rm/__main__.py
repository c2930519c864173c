"""``python -m polar_rm`` is the ``polar`` command, for launchers such as torchrun."""

from polar_rm.cli.main import main

main()

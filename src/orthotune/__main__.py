"""``python -m orthotune``, and ``torchrun -m orthotune``: the command line."""

from orthotune.cli.main import main

if __name__ == "__main__":
    main()

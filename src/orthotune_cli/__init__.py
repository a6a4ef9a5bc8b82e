"""The command line by its former name: scripts that start ``-m orthotune_cli.main`` keep working."""

from orthotune.cli import __path__ as __path__

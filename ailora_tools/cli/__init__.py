"""The command line."""

from .group import main as main

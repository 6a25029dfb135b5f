"""The version, the one place where it is written: the package and its metadata take it from here."""

__version__ = "0.1.0"

"""The installed distribution's version."""

from importlib.metadata import version

VERSION = version("holdfast")

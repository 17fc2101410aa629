"""The code version: part of every artifact's identity and every image's tag."""

__version__ = "0.12.0"

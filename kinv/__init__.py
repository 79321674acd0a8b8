"""kinv inverts image classifiers: what do the logits still know?

docs/architecture.md shows the way of an image through the packages.
"""

__version__ = "0.1.0"

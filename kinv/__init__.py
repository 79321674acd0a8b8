"""kinv inverts image classifiers: what do the logits still know?

The pipeline, in reading order: `scenes`, `datasets`, `classifiers`, `robust`,
`layers`, `networks`, `losses`, `inversion`, `callbacks`, `export`, `pipeline`,
`images`.
"""

__version__ = "0.1.0"

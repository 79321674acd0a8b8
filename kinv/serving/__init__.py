"""Exported models, here or behind a server.

In: the directory of an export, or the address of a server. Out:
`pipeline.Pipeline`, functions of arrays; TF Serving's protocols; the explorer.
It imports none of kinv's other packages.
"""

"""Analyses of exported models: one module per question."""

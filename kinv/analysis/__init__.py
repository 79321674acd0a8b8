"""The experiments: one module for each question, and the report.

In: `serving.pipeline.Pipeline` models and a `data.source.Source`. Out: metrics,
tables, figures, a page. It may import `kinv.serving`, `kinv.data` and
`kinv.classifiers.features`, and nothing of the training.

Every experiment has a `TITLE` and `run(study)`, which is given a `study.Study`
and returns a `results.Result`, or raises `results.NotApplicable`.
"""

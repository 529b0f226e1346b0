"""Evaluation of a model on whole data sets, resumable and shared over processes; the report of its figures."""

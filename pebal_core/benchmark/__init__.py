"""Evaluates a model on whole data sets, in one process or many, resumes what was interrupted, and writes a report."""

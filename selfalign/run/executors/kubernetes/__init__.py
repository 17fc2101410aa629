"""Attempts as Kubernetes Jobs, and the controller that drives AlignmentRuns. Needs no torch."""

"""What carries out the attempts of a run: local processes or Kubernetes Jobs."""

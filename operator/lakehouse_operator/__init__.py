"""The Kubernetes operator's place: nothing is built here yet."""

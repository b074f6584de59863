"""The lakehouse's Kubernetes operator: watch, observe, decide, bring one step further, look again.

Every decision is `lakehouse.control`'s, the same that one process makes (`lakehouse.embedded`); here is what a cluster
is: watches, pods and Jobs, one leader, one writer of each status.  What this package does not do: hold vectors, or
read datasets; pods and Jobs do.
"""

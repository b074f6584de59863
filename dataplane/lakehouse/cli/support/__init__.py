"""What a support bundle is made of; `lakehouse report` puts it together."""

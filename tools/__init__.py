"""Command lines, thin over the package; installed as the sub-commands of `metaloss`."""

"""Command lines, thin over the package; installed as `metaloss.tools` and `metaloss-NAME`."""

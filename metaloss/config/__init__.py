"""From words to objects: registries, plugins and gin files.

A ground floor: nothing here imports what it configures.
"""

from metaloss.config.configuration import Config, load

__all__ = ["Config", "load"]

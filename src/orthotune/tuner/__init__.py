"""The OFT tuner on PEFT's base classes. The import registers it; ``register.unregister`` restores PEFT's own OFT."""

from orthotune.tuner.register import register

register()

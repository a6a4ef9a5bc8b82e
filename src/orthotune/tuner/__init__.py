"""OFT as a tuner on PEFT's host. Importing it registers it there; ``register.unregister`` gives OFT back to PEFT."""

from orthotune.tuner.register import register

register()

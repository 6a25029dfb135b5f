"""Methods that PEFT has an init of its own for, by its tag in `init_lora_weights`: the tests hold ours against it."""

from ailora_tools.methods import METHODS

# Methods for a base of any kind: the others are for quantised ones.
ON_ANY = [name for name, row in METHODS.items() if not row.pooled]
PEERS = {"pissa": "pissa", "olora": "olora", "mica": "mica"}

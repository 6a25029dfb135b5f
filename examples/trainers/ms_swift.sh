# ms-swift (not run here): the adapter goes on training from the files, --adapters instead of a new one.
swift sft --model start --adapters start/ailora_init --train_type lora \
  --dataset AI-ModelScope/alpaca-gpt4-data-en#500 --learning_rate 2e-4 --num_train_epochs 1 --output_dir trained

# ms-swift: the adapter goes on training from the files, --adapters instead of a new one. For DPO and KTO (swift rlhf)
# also --ref_adapters start/ailora_init: without the adapter the model is the residual base, not the original.
swift sft --model start --adapters start/ailora_init --tuner_type lora \
  --dataset AI-ModelScope/alpaca-gpt4-data-en#500 --learning_rate 2e-4 --num_train_epochs 1 --output_dir trained

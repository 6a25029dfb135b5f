"""Unsloth, on a GPU (not run here): it follows the base that adapter_config.json names, which is the residual one."""

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel

from ailora_tools import check_start

# use_exact_model_name keeps it from exchanging the residual base for a copy of the original on the Hub.
model, tokenizer = FastLanguageModel.from_pretrained(
    "start/ailora_init", max_seq_length=1024, load_in_4bit=False, use_exact_model_name=True
)
check_start(model, "start/ailora_init")
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=load_dataset("mhenrichsen/alpaca_2k_test", split="train"),
    args=SFTConfig(output_dir="trained", learning_rate=2e-4, num_train_epochs=1),
)
trainer.train()

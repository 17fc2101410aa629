"""Fine-tuning of the base model on (prompt, response) pairs: stages engrave and clone.

Importing it imports no torch; calling `finetune.train` does.
"""

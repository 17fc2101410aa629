"""What makes weights a model that serves: chat template, defaults, card, bill of materials."""

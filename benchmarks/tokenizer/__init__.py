"""What a prompt costs the tokenizer, and what the turns of a conversation do."""

"""What an answer holds beside text: tool calls and reasoning, read as it comes and written as grammars. Pure."""

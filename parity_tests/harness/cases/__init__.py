"""Which inputs are compared: the matrix of pictures and prompts, and the exam."""

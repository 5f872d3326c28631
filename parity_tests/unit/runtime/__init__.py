"""From pictures and questions to text."""

"""From the graph and the documents to question-answer pairs and training rows."""

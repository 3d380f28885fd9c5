"""`sapwood doctor`: looks at a running set through its broker and says what is wrong and what to do."""

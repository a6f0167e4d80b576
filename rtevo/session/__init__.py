"""What a session is: its plan, rings and clock, what is checked before it, what every process sees of it, and the course that it takes."""

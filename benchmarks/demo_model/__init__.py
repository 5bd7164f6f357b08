"""How the built-in demo model is made: its scenes and questions, and the stages that train it."""

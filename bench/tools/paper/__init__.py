"""The paper's table: its rows, and what runs them on clips of a user's."""

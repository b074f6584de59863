"""SQL over datasets: hostile text, run in a process that can do nothing but compute."""

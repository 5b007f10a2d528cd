"""Access to the Hugging Face Hub: its client, listings of repositories, and models that are read from them."""

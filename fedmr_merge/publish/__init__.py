"""The global model goes out: card and Hub."""

"""What training and evaluation read, batch by batch: frozen features, pictures, embeddings."""

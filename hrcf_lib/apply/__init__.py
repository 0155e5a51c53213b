"""What a user does with a trained model: classify, explain, explore, calibrate, fine-tune, export."""
